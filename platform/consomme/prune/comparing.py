"""Compare stored layers of two models, or put layers of one into the other, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.stored_keys import LayerKeys
from consomme.prune.stored import StoredTensor, stored_tensors
from consomme.prune.writing import keys_of

Named = Mapping[str, Tensor]
Measure = Callable[[Sequence[Named], Sequence[Named]], list[float]]


class StoredLayers:
    """The layers of a model folder, read when they are asked for."""

    def __init__(self, folder: str | Path) -> None:
        """Read the headers.

        Args:
            folder: Of the model, on this machine.
        """
        self.folder = Path(folder)
        self.tensors: dict[str, StoredTensor] = stored_tensors(folder)
        self.keys: LayerKeys = keys_of(folder)

    @property
    def num_layers(self) -> int:
        """Number of stored layers, those beyond the model's own included."""
        return 1 + max(self.keys.layer_of.values())

    def names(self, layer: int) -> dict[str, str]:
        """Return the stored names of a layer's tensors by what they are called inside of it."""
        return {
            self.keys.renamed(name, 0).removeprefix(f"{self.keys.prefix}0."): name
            for name, number in self.keys.layer_of.items()
            if number == layer
        }

    def read(self, layer: int) -> dict[str, Tensor]:
        """Return a layer's tensors by what they are called inside of it."""
        return {inner: self.tensor(name) for inner, name in self.names(layer).items()}

    def tensor(self, name: str) -> Tensor:
        """Return a stored tensor."""
        with safe_open(self.tensors[name].file, framework="pt") as stored:
            found: Tensor = stored.get_tensor(name)
        return found


def stored_changes(base: str, tuned: str, measure: Measure) -> list[float]:
    """Measure how much each layer of a model differs from that of its base.

    Args:
        base: Folder of the model that training started from.
        tuned: Folder of the model.
        measure: Of `consomme.train.layer_scores`, such as `parameter_change`.

    Raises:
        CheckpointError: Their layers are not of the same architecture.
    """
    before, after = matched_layers(base, tuned)
    found = []
    for layer in range(after.num_layers):
        old, new = before.read(layer), after.read(layer)
        found += measure([_matrices(old)], [_matrices(new)])
    return found


def matched_layers(base: str, tuned: str) -> tuple[StoredLayers, StoredLayers]:
    """Open the stored layers of two models, and check that they fit.

    Raises:
        CheckpointError: They do not.
    """
    before, after = StoredLayers(base), StoredLayers(tuned)
    for layer in range(max(before.num_layers, after.num_layers)):
        shapes = [
            {inner: one.tensors[name].shape for inner, name in one.names(layer).items()}
            for one in (before, after)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"layer {layer} of {tuned} has other tensors than that of {base}, or tensors of"
                " other shapes; expected the model that it was tuned from"
            )
    return before, after


def _matrices(layer: Named) -> dict[str, Tensor]:
    """Return the matrices of a layer, those of experts that are stored together one by one."""
    found = {}
    for name, tensor in layer.items():
        if tensor.ndim == 2:
            found[name] = tensor
        elif tensor.ndim == 3 and tensor.dtype.is_floating_point:
            found |= {f"{name}.{k}": one for k, one in enumerate(torch.unbind(tensor))}
    return found
