"""Open a LoRA as an ingredient: the model that it was trained on, and what it adds to it.

It is mixed as the matrix W + s B A, not as its factors: the mean of products is not the product of
means. Nothing is merged on disk, and what the adapter leaves alone is read from its model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.adapters import Adapter, open_adapter
from consomme.soup.ingredients import Ingredient, LowRank

_WEIGHT = ".weight"
_HEAD = "lm_head"


def open_adapter_ingredient(
    folder: str | Path, base: Ingredient, name: str = "", source: str = ""
) -> Ingredient:
    """Open an adapter, whose tensors have to be among those of its model.

    Args:
        folder: A LoRA in PEFT's format, on local disk.
        base: The model that it was trained on.
        name: See `Ingredient`.
        source: See `Ingredient`.

    Raises:
        CheckpointError: It is no plain LoRA, or was trained on another model.
    """
    adapter = open_adapter(folder)
    stored = _stored_names(adapter, base)
    updates: dict[str, LowRank] = {}
    for module in adapter.modules:
        a_RI, b_OR = adapter.pairs[module]
        shape = (b_OR.shape[0], a_RI.shape[1])
        tensor = stored.get(module)
        if tensor is None or base.tensors[tensor].shape != shape:
            raise CheckpointError(_misfit(folder, module, shape, base, tensor))
        update = LowRank(a_RI=_float64(a_RI), b_OR=_float64(b_OR) * adapter.scale)
        if not (np.isfinite(update.a_RI).all() and np.isfinite(update.b_OR).all()):
            raise CheckpointError(
                f"{folder}: the adapter of {module} holds NaN or infinite values; leave it out, or"
                " train it again"
            )
        updates[tensor] = update
    return dataclasses.replace(
        base,
        name=name or Path(folder).name,
        source=source or str(folder),
        updates=updates,
    )


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _stored_names(adapter: Adapter, base: Ingredient) -> Mapping[str, str]:
    """Return the stored tensor of each module of an adapter that is one tensor of the model."""
    direct = {module: module + _WEIGHT for module in adapter.modules}
    if all(name in base.tensors for name in direct.values()):
        return direct
    # An adapter has names of the open model, which are not always those of the files.
    import torch

    from consomme.models.weights import build_from_config, open_keys

    with torch.device("meta"):
        model = build_from_config(base.folder)
    stored_of = {opened: name for name, opened in open_keys(model, base.tensors).items()}
    opened_of = open_keys(model, direct.values())
    found = {module: stored_of.get(opened_of.get(name, "")) for module, name in direct.items()}
    return {module: name for module, name in found.items() if name is not None}


def _misfit(
    folder: str | Path, module: str, shape: tuple[int, int], base: Ingredient, tensor: str | None
) -> str:
    if tensor is not None:
        found = f"has the shape {list(base.tensors[tensor].shape)}"
    elif module.rpartition(".")[2] == _HEAD:
        found = "is not stored; it is tied to the embeddings, which the adapter leaves alone"
    else:
        found = "is no tensor of its own there"
    return (
        f"{folder}: the adapter changes {module}, of {list(shape)}, which in the base"
        f" {base.source} {found}; name the model that the adapter was trained on as base, or merge"
        " it into that model (peft's merge_and_unload, then save_pretrained)"
    )
