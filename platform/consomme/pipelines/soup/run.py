"""Search for the best average of fine-tuned models: Ray Tune scores candidates in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from consomme.base.errors import RecipeError
from consomme.base.manifest import FileSum, Manifest
from consomme.execution.runs import Run, once
from consomme.execution.session import ray_session
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.tune import CandidateCache, tune_searches
from consomme.soup.ingredients import Ingredient, open_ingredient
from consomme.soup.likeness import check_compatible
from consomme.soup.mixing import ModelMix, write_soup
from consomme.soup.search import SEARCHES
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder, model_hash, portable_path
from consomme.storage.output_folder import output_folder
from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.store import join_url


@dataclass(frozen=True, kw_only=True)
class SoupInputs:
    """The ingredients, in the order of the recipe."""

    models: list[str]
    """Where any node finds them; see `portable_path`."""

    hashes: list[str]
    """Hashes of their content."""


def run(recipe: SoupRecipe) -> Manifest:
    """Run every search and write the soups; the best one becomes the model of the run."""
    return once(open_run, recipe, _soup)


def open_run(recipe: SoupRecipe) -> Run[SoupInputs]:
    """Resolve the ingredients of a recipe; writes nothing."""
    from consomme.evaluate.benchmark import is_written, parts_of
    from consomme.evaluate.benchmarks import BENCHMARKS, data_inputs

    labels = list(recipe.ingredients)
    models = [portable_path(model) for model in recipe.ingredients.values()]
    hashes = [model_hash(model) for model in models]
    inputs = {f"ingredients.{label}": one for label, one in zip(labels, hashes, strict=True)}
    inputs |= data_inputs([recipe.benchmark], "benchmark")
    if not is_written(BENCHMARKS.build(recipe.benchmark, "benchmark")):
        raise RecipeError(
            "benchmark.answer_by: found answers that are chosen by likelihood; soups are compared"
            " by what they write, so use generation"
        )
    if any(getattr(one, "judge", None) for one in parts_of(BENCHMARKS.build(recipe.benchmark))):
        raise RecipeError(
            "benchmark.judge: found one, but candidates of a soup are scored where they are made;"
            " leave it out, or choose another metric"
        )
    resolved = SoupInputs(models=models, hashes=hashes)
    return Run.open("soup", recipe, resolved, inputs=inputs, reads=models)


def _soup(run: Run[SoupInputs]) -> Manifest:
    recipe, models, hashes = run.recipe, run.resolved.models, run.resolved.hashes
    labels = list(recipe.ingredients)
    opened = [
        open_ingredient(model_folder(model), label, model)
        for model, label in zip(models, labels, strict=True)
    ]
    check_compatible(opened)
    cache = CandidateCache(open_store(join_url(recipe.root, "cache")), hashes, recipe.benchmark)
    searches = {str(n["name"]): SEARCHES.build(n, "searches") for n in recipe.searches}
    with ray_session():
        results = tune_searches(
            searches,
            models,
            recipe.benchmark,
            cache,
            recipe.num_actors,
            RunFolder.at(absolute_url(run.folder.url)),
        )
    best = max(results, key=lambda name: results[name].score)
    written: dict[str, FileSum] = {}
    for name, result in results.items():
        written |= _write(run.folder, f"{name}/model", [opened[k] for k in result.chosen])
    written |= _write(run.folder, "model", [opened[k] for k in results[best].chosen])
    singles = {labels[k]: cache.scores[(k,)] for k in range(len(labels)) if (k,) in cache.scores}
    metrics = {f"soup/{name}_score_fraction": result.score for name, result in results.items()}
    if singles:
        metrics["soup/best_single_score_fraction"] = max(singles.values())
    return run.finish(
        counts={"ingredients": len(labels), "evaluations": cache.num_scored},
        decisions={
            "best": best,
            "singles": singles,
            "labels": labels,
            "searches": {name: asdict(result) for name, result in results.items()},
        },
        metrics=metrics,
        outputs={"model": "model"} | {name: f"{name}/model" for name in results},
        written=written,
    )


def _write(run: RunFolder, path: str, chosen: Sequence[Ingredient]) -> dict[str, FileSum]:
    """Write one soup into the run folder; returns the sums of its files."""
    with output_folder(run.store, path) as output:
        folder = output.folder / path
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_soup(folder, ModelMix.of(chosen))
    return output.written
