"""Mix fine-tuned models into soups: all of them, or those that a search chooses by a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.own_modules import module_inputs
from consomme.execution.runs import Run, once
from consomme.pipelines.soup.from_sweep import with_models
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.writer import SoupInputs, SoupWriter
from consomme.soup.ingredients import Ingredient
from consomme.soup.methods import METHODS
from consomme.soup.mixing import shares_of
from consomme.soup.opening import hashes_of, located, open_models
from consomme.storage.model_files import ADAPTER, FolderKind
from consomme.storage.model_folder import model_hash, portable_path


def run(recipe: SoupRecipe) -> Manifest:
    """Run every search and write the soups; the best one becomes the model of the run."""
    return once(open_run, recipe, _soup)


def open_run(recipe: SoupRecipe) -> Run[SoupInputs]:
    """Resolve the ingredients of a recipe; writes nothing.

    Raises:
        RecipeError: What chooses has questions that report.
    """
    sweep = recipe.ingredients if isinstance(recipe.ingredients, str) else None
    recipe = with_models(recipe)
    labels = list(recipe.models)
    base = portable_path(recipe.base) if recipe.base else None
    kinds = [located(model)[1] for model in recipe.models.values()]
    models = list(map(portable_path, recipe.models.values(), kinds))
    hashes = hashes_of(dict(zip(labels, models, strict=True)), base)
    _check_base_is_used(recipe, kinds)
    inputs = {f"ingredients.{label}": one for label, one in zip(labels, hashes, strict=True)}
    inputs |= module_inputs(recipe.modules)
    if recipe.benchmark is not None:
        inputs |= _benchmark_inputs(recipe, recipe.benchmark)
    base_hash = model_hash(base) if base else None
    if base_hash:
        inputs["base"] = base_hash
    resolved = SoupInputs(models=models, hashes=hashes, base=base, base_hash=base_hash)
    reads = [*models, *([base] if base else [])]
    runs = {"sweep": sweep}
    return Run.open("soup", recipe, resolved, inputs=inputs, runs=runs, reads=reads)


def _check_base_is_used(recipe: SoupRecipe, kinds: Sequence[FolderKind]) -> None:
    needs_base = METHODS.get(str(recipe.method["name"])).needs_base
    if recipe.base is not None and not (recipe.guards or needs_base or ADAPTER in kinds):
        raise RecipeError(
            "base: found a model, but no guards that compare with it, no adapters that are added to"
            f" it, and {recipe.method['name']} mixes no differences from it; leave base out"
        )


def _benchmark_inputs(recipe: SoupRecipe, benchmark: Mapping[str, Any]) -> dict[str, str]:
    """Check the benchmarks of a recipe and return the versions of their data."""
    from consomme.evaluate.benchmarks import data_inputs
    from consomme.evaluate.disjoint import NamedBenchmark, check_disjoint
    from consomme.pipelines.evaluate.in_memory import check_needs_no_judge

    reports = {f"report[{number}]": node for number, node in enumerate(recipe.report)}
    guards = {f"guards[{k}].benchmark": one.benchmark for k, one in enumerate(recipe.guards)}
    if not recipe.reports_what_it_chose_by:
        check_disjoint(
            [NamedBenchmark(key="benchmark", node=benchmark)],
            [NamedBenchmark(key=key, node=node) for key, node in reports.items()],
            where=f"soup {recipe.name}",
        )
    check_needs_no_judge({"benchmark": benchmark, **guards, **reports})
    inputs = data_inputs([benchmark], "benchmark")
    inputs |= data_inputs([guard.benchmark for guard in recipe.guards], "guards")
    return inputs | data_inputs(recipe.report, "report")


def _soup(run: Run[SoupInputs]) -> Manifest:
    recipe, models = run.recipe, run.resolved.models
    found = open_models(dict(zip(recipe.models, models, strict=True)), run.resolved.base)
    opened = found.ingredients
    mixer = SoupWriter.of(recipe, run.folder, found)
    if recipe.benchmark is None:
        return _mixed(run, mixer, opened)
    # Ray takes longer to import than some models to mix.
    from consomme.pipelines.soup.searched import search_soups

    return search_soups(run, mixer, opened)


def _mixed(run: Run[SoupInputs], mixer: SoupWriter, opened: Sequence[Ingredient]) -> Manifest:
    """Mix all ingredients by their weights; nothing is measured."""
    recipe = run.recipe
    weights = [recipe.weights[one.name] for one in opened] if recipe.weights else None
    shares = shares_of(len(opened), weights)
    return run.finish(
        counts={"ingredients": len(opened)},
        decisions={
            "labels": list(recipe.models),
            "shares": dict(zip(recipe.models, shares, strict=True)),
            "method": recipe.method,
        },
        outputs={"model": "model"},
        written=mixer.write("model", mixer.mix(opened, weights)),
    )
