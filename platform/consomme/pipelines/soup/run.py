"""Search for the best average of fine-tuned models: Ray Tune scores candidates in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from consomme.base.manifest import FileSum, Manifest
from consomme.base.own_modules import module_inputs
from consomme.evaluate.disjoint import NamedBenchmark, check_disjoint
from consomme.execution.runs import Run, once
from consomme.execution.session import ray_session
from consomme.pipelines.soup.candidates import CHOICE, CandidateCache
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.tune import tune_searches
from consomme.soup.ingredients import Ingredient, open_ingredient
from consomme.soup.methods import METHODS, MixMethod
from consomme.soup.mixing import STORED_AS, ModelMix, shares_of
from consomme.soup.search import SEARCHES, SoupResult
from consomme.soup.writing import write_soup
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import (
    model_content_hash,
    model_folder,
    model_hash,
    portable_path,
)
from consomme.storage.output_folder import output_folder
from consomme.storage.stores.open import absolute_url
from consomme.storage.stores.store import join_url


@dataclass(frozen=True, kw_only=True)
class SoupInputs:
    """The ingredients, in the order of the recipe."""

    models: list[str]
    """Where any node finds them; see `portable_path`."""

    hashes: list[str]
    """Hashes of their content."""

    base: str | None = None
    """The model that guards compare with, as `models`."""

    base_hash: str | None = None
    """Hash of its content."""


def run(recipe: SoupRecipe) -> Manifest:
    """Run every search and write the soups; the best one becomes the model of the run."""
    return once(open_run, recipe, _soup)


def open_run(recipe: SoupRecipe) -> Run[SoupInputs]:
    """Resolve the ingredients of a recipe; writes nothing.

    Raises:
        RecipeError: What chooses has questions that report.
    """
    from consomme.evaluate.benchmarks import data_inputs
    from consomme.pipelines.evaluate.in_memory import check_needs_no_judge

    modules = module_inputs(recipe.modules)
    if recipe.benchmark is not None and not recipe.reports_what_it_chose_by:
        check_disjoint(
            [NamedBenchmark(key="benchmark", node=recipe.benchmark)],
            [
                NamedBenchmark(key=f"report[{number}]", node=node)
                for number, node in enumerate(recipe.report)
            ],
            where=f"soup {recipe.name}",
        )
    labels = list(recipe.ingredients)
    models = [portable_path(model) for model in recipe.ingredients.values()]
    hashes = [model_hash(model) for model in models]
    inputs = {f"ingredients.{label}": one for label, one in zip(labels, hashes, strict=True)}
    inputs |= modules
    if recipe.benchmark is not None:
        inputs |= data_inputs([recipe.benchmark], "benchmark")
    check_needs_no_judge(
        {
            **({"benchmark": recipe.benchmark} if recipe.benchmark is not None else {}),
            **{f"guards[{k}].benchmark": one.benchmark for k, one in enumerate(recipe.guards)},
            **{f"report[{k}]": node for k, node in enumerate(recipe.report)},
        }
    )
    inputs |= data_inputs([guard.benchmark for guard in recipe.guards], "guards")
    inputs |= data_inputs(recipe.report, "report")
    base = portable_path(recipe.base) if recipe.base else None
    base_hash = model_hash(base) if base else None
    if base_hash:
        inputs["base"] = base_hash
    resolved = SoupInputs(models=models, hashes=hashes, base=base, base_hash=base_hash)
    reads = [*models, *([base] if base else [])]
    return Run.open("soup", recipe, resolved, inputs=inputs, reads=reads)


def _soup(run: Run[SoupInputs]) -> Manifest:
    recipe, models, hashes = run.recipe, run.resolved.models, run.resolved.hashes
    labels = list(recipe.ingredients)
    folders = [model_folder(model) for model in models]
    opened = [
        open_ingredient(folder, label, model)
        for folder, label, model in zip(folders, labels, models, strict=True)
    ]
    mixer = SoupWriter.of(recipe, run.folder, run.resolved.base)
    if recipe.benchmark is None:
        return _mixed(run, mixer, opened)
    mixer.mix(opened)
    frames = [model_content_hash(folder, has_weights=False) for folder in folders]
    cache = CandidateCache(
        join_url(recipe.root, "cache"),
        hashes,
        recipe.benchmark,
        guards=recipe.guards,
        report=recipe.report,
        base_hash=run.resolved.base_hash if recipe.guards else None,
        shares_answers=[frame == frames[0] for frame in frames],
        method=_method(run),
    )
    searches = {str(n["name"]): SEARCHES.build(n, "searches") for n in recipe.searches}
    with ray_session():
        outcome = tune_searches(
            searches,
            dict(zip(labels, models, strict=True)),
            cache,
            recipe.num_actors,
            RunFolder.at(absolute_url(run.folder.url)),
            run.resolved.base,
            {"method": recipe.method, "dtype": mixer.dtype},
        )
    results, best = outcome.results, outcome.best
    written: dict[str, FileSum] = {}
    for name, result in results.items():
        written |= mixer.write(f"{name}/model", [opened[k] for k in result.chosen])
    written |= mixer.write("model", [opened[k] for k in results[best].chosen])
    singles = {
        labels[k]: cache.score((k,))
        for k in range(len(labels))
        if not cache.missing((k,), cache.choosing)
    }
    metrics = {
        f"soup/{name}_score_fraction": cache.score(result.chosen)
        for name, result in results.items()
    }
    if singles:
        metrics["soup/best_single_score_fraction"] = max(singles.values())
    reported = _reported(cache, results)
    for label, table in reported.items():
        for benchmark, figures in table.items():
            for figure, value in figures.items():
                metrics[f"soup/report/{label}/{benchmark}/{figure}"] = value
    return run.finish(
        counts={"ingredients": len(labels), "evaluations": cache.num_scored},
        decisions={
            "best": best,
            "singles": singles,
            "labels": labels,
            "searches": {name: _told(result, cache) for name, result in results.items()},
            "chosen_by": cache.name(CHOICE),
            **({"report": reported, "main_figures": cache.main_figures} if reported else {}),
            **({"ignores_guards": outcome.ignores_guards} if recipe.guards else {}),
        },
        metrics=metrics,
        outputs={"model": "model"} | {name: f"{name}/model" for name in results},
        written=written,
    )


def _told(result: SoupResult, cache: CandidateCache) -> dict[str, Any]:
    """Return a search's result as plain values, with scores as they were measured.

    To the search, a candidate that lost more than a guard allows has a score of minus infinity.
    """
    trace = [
        {
            **asdict(step),
            "score": cache.score(step.members),
            "best_before": step.best_before if _is_finite(step.best_before) else None,
            **({} if cache.passes(step.members) else {"fails_guards": True}),
        }
        for step in result.trace
    ]
    told = {
        **asdict(result),
        "score": cache.score(result.chosen),
        "single_scores": {k: cache.score((k,)) for k in result.single_scores},
        "trace": trace,
    }
    if cache.guards:
        told["guards"] = [finding.plain() for finding in cache.findings(result.chosen)]
    return told


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _reported(
    cache: CandidateCache, results: Mapping[str, SoupResult]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return figures by model and benchmark of those that only report; empty without any."""
    models = {name: result.chosen for name, result in results.items()}
    for result in results.values():
        if result.best_single:
            models["best_single"] = (result.best_single[0],)
    if not cache.reporting:
        return {}
    return {
        label: {cache.name(number): cache.figures(one, number) for number in cache.reporting}
        for label, one in models.items()
    }


def _method(run: Run[SoupInputs]) -> list[Any]:
    """Return what else than ingredients and shares decides a soup; nothing for an average."""
    recipe = run.recipe
    if recipe.method["name"] == "average":
        return [recipe.dtype] if recipe.dtype else []
    # What is dropped at random depends on the labels.
    labelled = sorted(zip(run.resolved.hashes, recipe.ingredients, strict=True))
    return [recipe.method, run.resolved.base_hash, labelled, recipe.dtype]


def _mixed(run: Run[SoupInputs], mixer: SoupWriter, opened: Sequence[Ingredient]) -> Manifest:
    """Mix all ingredients by their weights; nothing is measured."""
    recipe = run.recipe
    weights = [recipe.weights[one.name] for one in opened] if recipe.weights else None
    shares = shares_of(len(opened), weights)
    return run.finish(
        counts={"ingredients": len(opened)},
        decisions={
            "labels": list(recipe.ingredients),
            "shares": dict(zip(recipe.ingredients, shares, strict=True)),
            "method": recipe.method,
        },
        outputs={"model": "model"},
        written=mixer.write("model", opened, weights),
    )


@dataclass(frozen=True, kw_only=True)
class SoupWriter:
    """Writes soups of some ingredients into a run folder, as a recipe says."""

    folder: RunFolder
    method: MixMethod
    base: Ingredient | None
    """What the method takes differences from, if it does."""

    dtype: str | None
    max_shard_bytes: int | None

    @classmethod
    def of(cls, recipe: SoupRecipe, folder: RunFolder, base: str | None) -> SoupWriter:
        """Open the base, if the method needs one."""
        method = METHODS.build(recipe.method, "method")
        origin = None
        if base is not None and method.needs_base:
            origin = open_ingredient(model_folder(base), "base", base)
        largest = recipe.max_shard_gb
        return cls(
            folder=folder,
            method=method,
            base=origin,
            dtype=STORED_AS[recipe.dtype] if recipe.dtype else None,
            max_shard_bytes=None if largest is None else int(largest * 1e9),
        )

    def mix(self, chosen: Sequence[Ingredient], weights: Sequence[float] | None = None) -> ModelMix:
        """Return how some ingredients are mixed.

        Raises:
            CheckpointError: They cannot be.
        """
        return ModelMix.of(chosen, weights, method=self.method, base=self.base, dtype=self.dtype)

    def write(
        self, path: str, chosen: Sequence[Ingredient], weights: Sequence[float] | None = None
    ) -> dict[str, FileSum]:
        """Write a soup and return the sums of its files."""
        mix = self.mix(chosen, weights)
        with output_folder(self.folder.store, path) as output:
            folder = output.folder / path
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_soup(folder, mix, max_shard_bytes=self.max_shard_bytes)
        return output.written
