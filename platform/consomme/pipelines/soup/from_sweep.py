"""Take what a sweep has trained as the ingredients of a soup."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consomme.base.errors import RecipeError
from consomme.base.manifest import moved_runs
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.stores.open import absolute_url
from consomme.sweep.keys import label

VERB = "sweep"


def with_models(recipe: SoupRecipe) -> SoupRecipe:
    """Return a recipe whose ingredients are models, those of its sweep if it names one.

    Raises:
        RecipeError: It names no finished sweep, or one that has trained fewer than two models.
    """
    folder = recipe.ingredients
    if not isinstance(folder, str):
        return recipe
    manifest = load_manifest(absolute_url(folder))
    if manifest.verb != VERB:
        raise RecipeError(
            f"ingredients: found a run of {manifest.verb} at {folder}, expected the folder of a"
            " sweep, or {label: model, …}"
        )
    trials = [one for one in manifest.decisions["trials"] if one["state"] == "done"]
    kept = [one for one in trials if all(guard["passes"] for guard in one.get("findings", ()))]
    if len(kept) < 2:
        lost = f", {len(trials) - len(kept)} of which lost more than its guards allow"
        raise RecipeError(
            f"ingredients: the sweep {folder} has {len(trials)} trials that are done"
            f"{lost if len(kept) < len(trials) else ''}; a soup needs at least two models"
        )
    moved = moved_runs(manifest, load_manifest)
    # Weights are checked against the labels, which are known only now.
    return dataclasses.replace(recipe, ingredients=dict(_labelled(kept, moved)))


def _labelled(
    trials: Sequence[Mapping[str, Any]], moved: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield label and model of each trial."""
    names = [label(trial["keys"]).replace("/", "_") for trial in trials]
    for name, trial in zip(names, trials, strict=True):
        is_unique = names.count(name) == 1
        model = str(trial["train"])
        yield (name if is_unique else f"{name} ({trial['number']})"), moved.get(model, model)
