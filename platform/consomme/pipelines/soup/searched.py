"""Search for the best soup: Ray Tune scores candidates in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from consomme.base.manifest import FileSum, Manifest
from consomme.execution.runs import Run
from consomme.execution.session import ray_session
from consomme.pipelines.soup.candidates import CandidateCache
from consomme.pipelines.soup.racing import CHOICE
from consomme.pipelines.soup.tune import tune_searches
from consomme.pipelines.soup.writer import SoupInputs, SoupWriter
from consomme.soup.blends import WHOLE, Blend, Candidate, Grouping, TensorGroups
from consomme.soup.groups import tensor_groups
from consomme.soup.ingredients import Ingredient
from consomme.soup.pairs import PairSoups
from consomme.soup.search import SoupResult, SoupSearch, SoupStep
from consomme.soup.searches import SEARCHES
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_content_hash
from consomme.storage.stores.open import absolute_url
from consomme.storage.stores.store import join_url


def search_soups(run: Run[SoupInputs], mixer: SoupWriter, opened: Sequence[Ingredient]) -> Manifest:
    """Run every search and write the soups.

    Args:
        run: Whose recipe has a benchmark.
        mixer: Of the run.
        opened: The ingredients, in the order of the recipe.
    """
    recipe, models, hashes = run.recipe, run.resolved.models, run.resolved.hashes
    assert recipe.benchmark is not None
    labels = list(recipe.models)
    mixer.mix(opened)
    frames = [model_content_hash(one.folder, has_weights=False) for one in opened]
    searches = {str(n["name"]): SEARCHES.build(n, "searches") for n in recipe.searches}
    groups = _groups(searches, opened[0])
    cache = CandidateCache(
        join_url(recipe.root, "cache"),
        hashes,
        recipe.benchmark,
        guards=recipe.guards,
        report=recipe.report,
        base_hash=run.resolved.base_hash if recipe.guards else None,
        shares_answers=[frame == frames[0] for frame in frames],
        method=_method(run),
        groups=groups,
        early_stop=recipe.early_stop,
        engine=recipe.engine,
    )
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
    soups = {f"{name}/model": result.soup for name, result in results.items()}
    for path, candidate in {**soups, "model": results[best].soup}.items():
        written |= mixer.write(path, mixer.mix_candidate(opened, candidate, groups))
    singles = {
        labels[k]: cache.score((k,))
        for k in range(len(labels))
        if not cache.missing((k,), cache.choosing)
    }
    metrics = {
        f"soup/{name}_score_fraction": cache.score(result.soup) for name, result in results.items()
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
            "searches": {
                name: _told(result, cache, labels) | _barriers(searches[name], cache, labels)
                for name, result in results.items()
            },
            "chosen_by": cache.name(CHOICE),
            **({"report": reported, "main_figures": cache.main_figures} if reported else {}),
            **({"early_stop": _saved(results, cache)} if recipe.early_stop else {}),
            **({"ignores_guards": outcome.ignores_guards} if recipe.guards else {}),
        },
        metrics=metrics,
        outputs={"model": "model"} | {name: f"{name}/model" for name in results},
        written=written,
    )


def _groups(searches: Mapping[str, SoupSearch], first: Ingredient) -> dict[Grouping, TensorGroups]:
    """Return what the groupings of the searches mean for these models."""
    asked = {getattr(search, "grouping", WHOLE) for search in searches.values()} - {WHOLE}
    return {one: tensor_groups(first.folder, first.tensors, one) for one in sorted(asked)}


def _told(result: SoupResult, cache: CandidateCache, labels: Sequence[str]) -> dict[str, Any]:
    """Return a search's result as plain values, with scores as they were measured.

    To the search, a candidate that lost more than a guard allows has a score of minus infinity.
    """
    trace = [
        {
            **asdict(step),
            "score": cache.known_score(step.scored),
            "best_before": step.best_before if _is_finite(step.best_before) else None,
            **_unfinished(step, cache),
            **_interval(step.scored, cache),
            **({"shares": _shares(step.blend, cache, labels)} if step.blend else {}),
        }
        for step in result.trace
    ]
    told = {
        **asdict(result),
        "shares": _shares(result.soup, cache, labels),
        "front": [
            {
                "objectives": dict(zip(cache.objective_names, cache.objectives(one), strict=True)),
                "shares": _shares(one, cache, labels),
                "passes_guards": cache.passes(one),
                "is_soup": one == result.soup,
            }
            for one in result.front
        ],
        "objectives": [cache.objectives(step.scored) for step in result.trace if result.front],
        "score": cache.score(result.soup),
        "single_scores": {k: cache.known_score((k,)) for k in result.single_scores},
        "trace": trace,
    }
    if cache.guards:
        told["guards"] = [finding.plain() for finding in cache.findings(result.soup)]
    return told


def _barriers(search: SoupSearch, cache: CandidateCache, labels: Sequence[str]) -> dict[str, Any]:
    """Return what lies between two ingredients each, if that was searched."""
    if not isinstance(search, PairSoups):
        return {}
    found = search.barriers(len(labels), cache.known_score)
    return {"barriers": [asdict(one) for one in found]}


def _unfinished(step: SoupStep, cache: CandidateCache) -> dict[str, Any]:
    """Return why a candidate could not be chosen, whatever its score."""
    if stopped := cache.unfinished(step.scored):
        return {"stopped_after": stopped.num_questions}
    return {} if cache.passes(step.scored) else {"fails_guards": True}


def _interval(candidate: Candidate, cache: CandidateCache) -> dict[str, float]:
    """Return the 95 % interval of a score, if the benchmark has one."""
    if cache.unfinished(candidate):
        return {}
    figures = cache.figures(candidate, CHOICE)
    stem, found, unit = next(iter(figures)).rpartition("_fraction")
    ends = {end: figures.get(f"{stem}_{end}{found}{unit}") for end in ("low", "high")}
    return {end: value for end, value in ends.items() if value is not None}


def _saved(results: Mapping[str, SoupResult], cache: CandidateCache) -> dict[str, int]:
    """Return how many questions were not asked of candidates that were stopped."""
    scored = {step.scored for result in results.values() for step in result.trace}
    stopped = [found for one in scored if (found := cache.unfinished(one)) is not None]
    num_questions = cache.race.num_questions
    return {
        "candidates": len(scored),
        "stopped_candidates": len(stopped),
        "questions": len(scored) * num_questions,
        "saved_questions": sum(num_questions - one.num_questions for one in stopped),
    }


def _shares(
    candidate: Candidate, cache: CandidateCache, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the shares of the ingredients by part of the model and label."""
    if not isinstance(candidate, Blend):
        return {"model": {labels[k]: 1 / len(candidate) for k in candidate}}
    is_whole = candidate.grouping == WHOLE
    names = ("model",) if is_whole else cache.groups[candidate.grouping].names
    return {
        name: {label: share for label, share in zip(labels, shares, strict=True) if share}
        for name, shares in zip(names, candidate.shares(), strict=True)
    }


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _reported(
    cache: CandidateCache, results: Mapping[str, SoupResult]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return figures by model and benchmark of those that only report; empty without any."""
    models: dict[str, Candidate] = {name: result.soup for name, result in results.items()}
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
    labelled = sorted(zip(run.resolved.hashes, recipe.models, strict=True))
    return [recipe.method, run.resolved.base_hash, labelled, recipe.dtype]
