"""Search for the best average of fine-tuned models: Ray Tune scores candidates in memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.execution.runs import begin
from consomme.execution.session import ray_session
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.tune import CandidateCache, tune_searches
from consomme.soup.ingredients import check_compatible, open_ingredient
from consomme.soup.mixing import write_soup
from consomme.soup.search import SEARCHES
from consomme.storage.model_folder import model_content_hash, model_folder
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url


def run(recipe: SoupRecipe) -> Manifest:
    """Score candidates, choose, and write the best soup of every search."""
    if len(recipe.ingredients) < 2:
        raise RecipeError(
            f"ingredients: found {len(recipe.ingredients)}, a soup needs at least two"
        )
    labels = list(recipe.ingredients)
    folders = [model_folder(model) for model in recipe.ingredients.values()]
    prints = [model_content_hash(folder) for folder in folders]
    attempt = begin("soup", recipe, inputs=dict(zip(labels, prints, strict=True)), reads=folders)
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    opened = [open_ingredient(f, label) for f, label in zip(folders, labels, strict=True)]
    check_compatible(opened)
    cache = CandidateCache(open_store(join_url(recipe.root, "cache")), prints, recipe.benchmark)
    searches = {str(n["name"]): SEARCHES.build(n, "searches") for n in recipe.searches}
    with ray_session():
        results = tune_searches(searches, folders, recipe.benchmark, cache, recipe.num_actors)
    best = max(results, key=lambda name: results[name].score)
    for name, result in results.items():
        _write(attempt.folder.path, name, [opened[k] for k in result.chosen])
    _write(attempt.folder.path, "", [opened[k] for k in results[best].chosen])
    singles = {labels[k]: cache.known[(k,)] for k in range(len(labels)) if (k,) in cache.known}
    metrics = {f"soup/{name}_score_fraction": result.score for name, result in results.items()}
    if singles:
        metrics["soup/best_single_score_fraction"] = max(singles.values())
    return attempt.finish(
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


def _write(run: str, name: str, chosen: list[Any]) -> None:
    folder = Path(run) / name / "model"
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_soup(folder, chosen)
