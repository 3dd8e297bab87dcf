"""Which tensors of an architecture have shares in common: parts of the model, groups of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from consomme.base.errors import RecipeError
from consomme.soup.blends import Grouping, TensorGroups

if TYPE_CHECKING:
    from consomme.models.anatomy import Anatomy


def tensor_groups(folder: str | Path, names: Iterable[str], grouping: Grouping) -> TensorGroups:
    """Find the groups of stored tensors.

    The model is built from its configuration without weights, and parts are told by what uses them.
    Embeddings are in the first group of layers, and the head is in the last one.

    Args:
        folder: Of a model, on this machine.
        names: Of its stored tensors.
        grouping: What has shares in common.

    Raises:
        RecipeError: There are fewer layers than groups.
        CheckpointError: The parts of this model cannot be told.
    """
    names = list(names)
    if not grouping.per_part:
        return TensorGroups(names=("model",), group_of=dict.fromkeys(names, 0))
    import torch

    from consomme.models.anatomy import anatomy
    from consomme.models.stored_names import open_places
    from consomme.models.weights import build_from_config

    with torch.device("meta"):
        model = build_from_config(folder)
    places = open_places(model, names)
    groups = dict(_groups(anatomy(model), grouping))
    label_of = {name: label for label, members in groups.items() for name in members}
    found = {name: _label(place, label_of) for name, place in places.items()}
    used = [label for label in groups if label in set(found.values())]
    return TensorGroups(
        names=tuple(used), group_of={name: used.index(label) for name, label in found.items()}
    )


def _groups(parts: Anatomy, grouping: Grouping) -> Iterator[tuple[str, list[str]]]:
    """Yield label and parameters of each group."""
    yield "vision_encoder", list(parts.vision_encoder)
    yield "projector", list(parts.projector)
    for side, members in parts.sides.items():
        yield side, list(members)
    count, num = len(parts.layers), grouping.layer_groups
    if num > count:
        raise RecipeError(
            f"layer_groups: found {num}, but the language model has {count} layers; expected at"
            f" most {count}"
        )
    for k in range(num):
        start, stop = k * count // num, (k + 1) * count // num
        own = [name for layer in parts.layers[start:stop] for name in layer]
        own += list(parts.embeddings) if k == 0 else []
        own += list(parts.head) if k == num - 1 else []
        yield "language_model" if num == 1 else f"layers_{start}_to_{stop - 1}", own


def _label(place: str, label_of: dict[str, str]) -> str:
    """Return the group of a place in the model; a buffer belongs to what is nearest by name."""
    if place in label_of:
        return label_of[place]
    path = place.split(".")

    def shared(name: str) -> int:
        pairs = zip(path, name.split("."), strict=False)
        return next((k for k, (own, other) in enumerate(pairs) if own != other), len(path))

    return label_of[max(label_of, key=shared)]
