"""Export a trained model: the start of the run, with the trained weights in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.base.manifest import FileSum
from consomme.base.places import Scratch
from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState
from consomme.pipelines.train.context import TrainContext
from consomme.storage.model_folder import hub_place, model_folder
from consomme.storage.output_folder import output_folder


def open_trained(
    context: TrainContext, layers: Sequence[int], weights: Mapping[str, Any]
) -> tuple[Any, Any, bool]:
    """Open the model that training started from and load the trained weights into it, float32.

    Args:
        context: The run's.
        layers: Layers that were selected at the start.
        weights: Trained weights by name, adapters included.

    Returns:
        (model, processor, whether the model has adapters).

    Raises:
        CheckpointError: The model has no parameter of some weight's name.
    """
    from consomme.models.weights import open_model
    from consomme.train.trainable import set_trainable

    recipe = context.recipe
    model, processor = open_model(model_folder(context.start))
    trained = set_trainable(model, recipe.trainability, layers, lr=recipe.lr)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise CheckpointError(
            f"{unknown[0]} was trained, but {context.start} has no parameter of this name"
        )
    return model, processor, bool(trained.adapters)


def export_dtype(context: TrainContext) -> Any:
    """Return the dtype of the exported weights: the recipe's, or that of the start of the run."""
    import torch

    from consomme.models.weights import stored_dtype

    chosen = context.recipe.export_dtype
    return stored_dtype(model_folder(context.start)) if chosen == "auto" else getattr(torch, chosen)


def check_export(context: TrainContext) -> None:
    """Try the export without weights, before any step is trained.

    Raises:
        CheckpointError: The trained model could not be saved, or not be opened.
    """
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import check_save_trained, open_processor

    base = model_folder(context.start, has_weights=False)
    stop_id = chat_encoder_for(*open_processor(base)).turn_end.last_id
    with Scratch() as scratch:
        check_save_trained(scratch, base, stop_id)


def export(
    context: TrainContext, layers: Sequence[int], weights: Mapping[str, Any]
) -> dict[str, FileSum]:
    """Write the trained model into the run folder as a plain model folder, adapters merged.

    Args:
        context: The run's.
        layers: As in `open_trained`.
        weights: As in `open_trained`.

    Returns:
        Sums of the written files, by path in the run folder.

    Raises:
        SupersededError: The run was started again elsewhere; nothing was written.
    """
    context.check_current()
    with output_folder(context.folder.store, "model", "adapter") as output:
        write_trained(context, layers, weights, output.folder)
    return output.written


def write_trained(
    context: TrainContext, layers: Sequence[int], weights: Mapping[str, Any], folder: Path
) -> None:
    """Write the trained model as `model/` of a folder on this machine, and its adapter if asked.

    Args:
        context: The run's.
        layers: As in `open_trained`.
        weights: As in `open_trained`.
        folder: Where to.
    """
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import cast_weights, save_trained

    base = model_folder(context.start)
    model, processor, has_adapters = open_trained(context, layers, weights)
    stop_id = chat_encoder_for(model.config, processor).turn_end.last_id
    if has_adapters:
        from consomme.models.lora import merge_lora, save_adapter

        if context.recipe.save_adapter:
            on_hub = hub_place(context.start)
            origin = (on_hub.repo, on_hub.revision) if on_hub else (base, None)
            save_adapter(model, folder / "adapter", *origin)
        merge_lora(model)
    cast_weights(model, export_dtype(context))
    save_trained(folder / "model", model, base, stop_id)


def export_checkpoint(checkpoint: Any, context: TrainContext) -> tuple[int, dict[str, FileSum]]:
    """Export the weights of a Ray Train checkpoint; returns its step and what `export` returns."""
    from safetensors.torch import load_file

    with checkpoint.as_directory() as path:
        state = TrainState.load(Path(path))
        weights = load_file(Path(path) / WEIGHTS)
    written = export(context, state.layers or (), weights)
    return state.step, written
