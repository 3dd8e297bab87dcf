"""Search for the best average of fine-tuned models: Ray Tune scores candidates in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consomme.base.manifest import Manifest
from consomme.execution.runs import Run
from consomme.execution.session import ray_session
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.tune import CandidateCache, tune_searches
from consomme.soup.ingredients import check_compatible, open_ingredient
from consomme.soup.mixing import write_soup
from consomme.soup.search import SEARCHES
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_content_hash, model_folder
from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.store import join_url


@dataclass(frozen=True, kw_only=True)
class SoupInputs:
    """The ingredients, in the order of the recipe."""

    folders: list[str]
    """Model folders on this machine."""

    hashes: list[str]
    """Hashes of their content."""


def run(recipe: SoupRecipe) -> Manifest:
    """Run every search and write the soups; the best one becomes the model of the run."""
    return open_run(recipe).once(_soup)


def open_run(recipe: SoupRecipe) -> Run[SoupInputs]:
    """Resolve the ingredients of a recipe; writes nothing."""
    labels = list(recipe.ingredients)
    folders = [model_folder(model) for model in recipe.ingredients.values()]
    hashes = [model_content_hash(folder) for folder in folders]
    inputs = {f"ingredients.{label}": one for label, one in zip(labels, hashes, strict=True)}
    resolved = SoupInputs(folders=folders, hashes=hashes)
    return Run.open(
        "soup", recipe, resolved, inputs=inputs, reads=list(recipe.ingredients.values())
    )


def _soup(run: Run[SoupInputs]) -> Manifest:
    recipe, folders, hashes = run.recipe, run.resolved.folders, run.resolved.hashes
    labels = list(recipe.ingredients)
    opened = [open_ingredient(f, label) for f, label in zip(folders, labels, strict=True)]
    check_compatible(opened)
    cache = CandidateCache(open_store(join_url(recipe.root, "cache")), hashes, recipe.benchmark)
    searches = {str(n["name"]): SEARCHES.build(n, "searches") for n in recipe.searches}
    with ray_session():
        results = tune_searches(
            searches,
            folders,
            recipe.benchmark,
            cache,
            recipe.num_actors,
            RunFolder.at(absolute_url(run.folder.url)),
        )
    best = max(results, key=lambda name: results[name].score)
    for name, result in results.items():
        _write(run.folder.path, name, [opened[k] for k in result.chosen])
    _write(run.folder.path, "", [opened[k] for k in results[best].chosen])
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
    )


def _write(run_folder: str, name: str, chosen: list[Any]) -> None:
    folder = Path(run_folder) / name / "model"
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_soup(folder, chosen)
