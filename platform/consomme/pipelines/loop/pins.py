"""The commits of the hub that a loop has read, for as long as it is not done.

A stage that was done with a commit is found again only with this commit. A file beside the runs of
the loop holds them, from the first stage that is done until the whole loop is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

from consomme.base.recipe import fingerprint
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import Store, join_url


def begun_pins(recipe: LoopRecipe) -> dict[str, str]:
    """Return the pins of a loop that was begun and is not done; empty if there is none."""
    store, file = _file(recipe)
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, AttributeError):
        content = json.loads(store.read(file))
        if content["recipe"] == fingerprint(recipe, {}):
            return {str(name): str(commit) for name, commit in content["pins"].items()}
    return {}


def keep_begun_pins(recipe: LoopRecipe, pins: Mapping[str, str]) -> None:
    """Add the pins of a stage that is done."""
    store, file = _file(recipe)
    every = {**begun_pins(recipe), **pins}
    content = {"recipe": fingerprint(recipe, {}), "pins": every}
    store.write(file, json.dumps(content, indent=1).encode())


def forget_pins(recipe: LoopRecipe) -> None:
    """Forget them: the loop is done, and the next one reads what branches are then."""
    store, file = _file(recipe)
    if store.exists(file):
        store.delete(file)


def _file(recipe: LoopRecipe) -> tuple[Store, str]:
    return open_store(join_url(recipe.root, "loop")), f"{recipe.name}.pins.json"
