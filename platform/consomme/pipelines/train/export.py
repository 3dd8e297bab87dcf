"""Put a trained model together again: what the run started from, and what moved."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store


def open_trained(
    recipe: TrainRecipe, start: str, layers: Sequence[int], moved: Mapping[str, Any]
) -> tuple[Any, Any, bool]:
    """Open the start and put what moved in its place.

    Args:
        recipe: Of the run.
        start: Folder of the model that it started from.
        layers: Those that were selected at the start.
        moved: Weights by name, adapters included.

    Returns:
        (model, processor, whether there are adapters in it).

    Raises:
        CheckpointError: Something of what moved has no place in the model.
    """
    from consomme.models.weights import open_scorer
    from consomme.train.trainable import set_trainable

    model, processor = open_scorer(model_folder(start))
    trained = set_trainable(model, recipe.trainability, layers, lr=recipe.lr)
    strangers = model.load_state_dict(moved, strict=False).unexpected_keys
    if strangers:
        raise CheckpointError(f"{strangers[0]} was trained, but {start} has nothing of this name")
    return model, processor, bool(trained.adapters)


def export(
    recipe: TrainRecipe, start: str, layers: Sequence[int], moved: Mapping[str, Any], folder: str
) -> None:
    """Write the finished model as a plain folder, adapters added to their matrices.

    Args:
        recipe: As in `open_trained`.
        start: As there.
        layers: As there.
        moved: As there.
        folder: The run folder.
    """
    from consomme.models.weights import save_vlm

    model, processor, has_adapters = open_trained(recipe, start, layers, moved)
    with _written(folder) as place:
        if has_adapters:
            from consomme.models.lora import merge_lora, save_adapter

            if recipe.save_adapter:
                save_adapter(model, place / "adapter", recipe.model)
            merge_lora(model)
        save_vlm(place / "model", model, processor)


@contextlib.contextmanager
def _written(folder: str) -> Iterator[Path]:
    """Give a folder to write to, whose content ends in the run folder, wherever that is."""
    if "://" not in folder:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        store = open_store(folder)
        for path in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            store.write(str(path.relative_to(scratch)), path.read_bytes())
