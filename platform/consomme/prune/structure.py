"""Compare the layers that a rewritten config makes with those they were before.

Both models are built without memory, on the `meta` device. A layer is described by the classes of
its modules, the shapes of its parameters and every plain value that its modules hold: windows,
kinds of attention, experts, scales by depth. What differs says why a layer cannot be removed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from consomme.base.errors import CheckpointError
from consomme.models.anatomy import language_model
from consomme.models.weights import build_from_config

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, kw_only=True)
class BlockSlice:
    """A tensor outside of the layers that has a block for each of them, side by side."""

    dim: int
    """Dimension that the blocks share."""


def build_empty(config: Mapping[str, Any]) -> Any:
    """Build the model that the content of a `config.json` describes, without memory.

    Raises:
        CheckpointError: There is no such model.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        try:
            with torch.device("meta"):
                return build_from_config(folder)
        except (TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                f"no model can be built from the config without these layers: {error}"
            ) from error


def compare_layers(whole: Any, pruned: Any, removed: Sequence[int]) -> dict[str, BlockSlice]:
    """Check that a model is another one without some layers.

    Args:
        whole: The model with all layers, on any device.
        pruned: What the rewritten config makes.
        removed: Layers that are missing there.

    Returns:
        Parameters outside of the layers, by name, that lose a block for each of them.

    Raises:
        CheckpointError: A layer is another one than it was, or something else changed.
    """
    path = language_model(whole).layers_path
    before, after = list(whole.get_submodule(path)), list(pruned.get_submodule(path))
    kept = [index for index in range(len(before)) if index not in set(removed)]
    if len(after) != len(kept):
        raise CheckpointError(
            f"the rewritten config makes {len(after)} layers, expected {len(kept)}; layers of a"
            f" {type(whole).__name__} cannot be removed"
        )
    moved = {old: new for new, old in enumerate(kept)}
    shares = getattr(pruned.config.get_text_config(), "num_kv_shared_layers", None)
    for new, old in enumerate(kept):
        for name, found, expected in _differences(before[old], after[new], old, moved):
            if name.rpartition(".")[2] in _OF_SHARING and not shares:
                continue
            raise CheckpointError(
                f"without layers {_listed(removed)}, layer {old} of a {type(whole).__name__} would"
                f" be another one: found {name} = {found}, expected {expected}. Its config cannot"
                " describe these layers; remove others, or protect some"
            )
    return dict(_outside(whole, pruned, path, len(before), len(kept)))


def _outside(
    whole: Any, pruned: Any, path: str, num_before: int, num_after: int
) -> Iterator[tuple[str, BlockSlice]]:
    """Yield what differs outside of the layers, as far as it is blocks of them."""
    shapes = [
        {
            name: tuple(tensor.shape)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            if not name.startswith(f"{path}.")
        }
        for model in (whole, pruned)
    ]
    if shapes[0].keys() != shapes[1].keys():
        some = sorted(shapes[0].keys() ^ shapes[1].keys())[0]
        raise CheckpointError(
            f"{some} of a {type(whole).__name__} depends on the number of layers, and is no part of"
            " a layer; layers of this model cannot be removed"
        )
    for name, old in shapes[0].items():
        new = shapes[1][name]
        if old == new:
            continue
        changed = [dim for dim in range(len(old)) if len(old) == len(new) and old[dim] != new[dim]]
        is_blocks = len(changed) == 1 and (
            old[changed[0]] % num_before == 0
            and new[changed[0]] == old[changed[0]] // num_before * num_after
        )
        if not is_blocks:
            raise CheckpointError(
                f"{name} of a {type(whole).__name__} has shape {old}, and {new} without the layers;"
                " layers of this model cannot be removed"
            )
        yield name, BlockSlice(dim=changed[0])


def _differences(
    one: nn.Module, other: nn.Module, number: int, moved: Mapping[int, int]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, found and expected of what differs between two layers."""
    before, after = dict(_described(one)), dict(_described(other))
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "nothing"), after.get(name, "nothing")
        last = name.rpartition(".")[2]
        if last in _POINTERS and _is_index(old):
            if new != moved.get(old):
                yield (
                    name,
                    new,
                    f"layer {old}, which is removed" if old not in moved else moved[old],
                )
            continue
        if old == new or _lists_all(old, new, moved):
            continue
        counts_layers = _is_index(old) and any(word in last for word in ("idx", "id", "layer"))
        if counts_layers and old == number and new == moved[number]:
            continue
        yield name, new, old


def _lists_all(old: Any, new: Any, moved: Mapping[int, int]) -> bool:
    """Whether each layer holds a list of all layers, of which the removed ones are gone."""
    if not (isinstance(old, list | tuple) and isinstance(new, list | tuple)):
        return False
    kept = sorted(moved)
    return len(old) > kept[-1] and list(new) == [old[index] for index in kept]


_POINTERS = ("kv_shared_layer_index",)
"""Attributes that name another layer."""


_OF_SHARING = ("store_full_length_kv",)
"""Attributes that say what other layers read, where any do."""


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _described(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a layer is made of: classes, shapes and plain values, by name."""
    for path, module in layer.named_modules():
        yield f"{path}.class" if path else "class", type(module).__name__
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, _PLAIN):
                yield f"{path}.{name}" if path else name, value
            elif isinstance(value, list | tuple) and all(isinstance(v, _PLAIN) for v in value):
                yield f"{path}.{name}" if path else name, tuple(value)
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        yield f"{name}.shape", tuple(tensor.shape)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
