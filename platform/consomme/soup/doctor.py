"""What models to be mixed have in common: how far each moved from the base, and which way.

Averages work where models moved in like directions; signs that disagree cancel each other. All
figures are sums over whole layers, in float64.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.soup.arrays import is_float
from consomme.soup.mixing import MixedTensor, MixReader, ModelMix

# Shapes: M models.
_LAYER = re.compile(r"^(.*?\.(?:layers?|blocks?|h|resblocks)\.\d+)\.")


@dataclass(frozen=True, kw_only=True)
class LayerMoves:
    """How the models moved in one layer."""

    layer: str
    """Name of the layer, or of the part that a tensor outside of layers belongs to."""

    num_values: int
    moved_M: tuple[float, ...]  # noqa: N815
    """Length of each model's difference from the base, relative to the base."""

    cosine: float | None
    """Mean cosine between the differences of two models; None if fewer than two moved."""

    least_cosine: float | None
    """Of the two models that differ most."""

    conflict_fraction: float
    """Share of the values that some models raised and others lowered."""


@dataclass(kw_only=True)
class _Sums:
    num_values: int = 0
    num_conflicts: int = 0
    base: float = 0.0
    dots_MM: NDArray[np.float64] | float = 0.0  # noqa: N815


def moves(mix: ModelMix) -> list[LayerMoves]:
    """Compare the models layer by layer, and all of their weights in the last entry.

    Differences are those from the base; without one, from the first model by label.
    """
    layers: dict[str, _Sums] = {}
    with MixReader(mix) as reader:
        for name, spec in mix.ingredients[0].tensors.items():
            if is_float(spec.dtype):
                sums = layers.setdefault(layer_of(name), _Sums())
                _add(sums, reader.open(name))
    whole = _Sums()
    for sums in layers.values():
        whole.num_values += sums.num_values
        whole.num_conflicts += sums.num_conflicts
        whole.base += sums.base
        whole.dots_MM = whole.dots_MM + sums.dots_MM
    return [_moves(name, sums) for name, sums in [*layers.items(), ("all", whole)]]


def layer_of(name: str) -> str:
    """Return the layer that a tensor belongs to."""
    match = _LAYER.match(name)
    return match[1] if match else name.rpartition(".")[0] or name


def _add(sums: _Sums, tensor: MixedTensor) -> None:
    origin = -1 if tensor.has_base else 0

    def piece(place: tuple[int, int]) -> tuple[float, NDArray[np.float64], int]:
        base = tensor.read(origin, *place).astype(np.float64)
        stacked = np.stack([tensor.read(k, *place) - base for k in range(len(tensor.models))])
        is_split = (stacked > 0).any(axis=0) & (stacked < 0).any(axis=0)
        return float(base @ base), stacked @ stacked.T, int(np.count_nonzero(is_split))

    for square, dots, conflicts in tensor.pool.map(piece, tensor.pieces()):
        sums.base += square
        sums.dots_MM = sums.dots_MM + dots
        sums.num_conflicts += conflicts
    sums.num_values += tensor.size


def _moves(name: str, sums: _Sums) -> LayerMoves:
    dots = np.atleast_2d(sums.dots_MM)
    lengths = np.sqrt(np.diag(dots))
    cosines = [
        float(dots[one, other] / (lengths[one] * lengths[other]))
        for one in range(len(lengths))
        for other in range(one)
        if lengths[one] and lengths[other]
    ]
    scale = np.sqrt(sums.base)
    return LayerMoves(
        layer=name,
        num_values=sums.num_values,
        moved_M=tuple((lengths / scale if scale else lengths).tolist()),
        cosine=float(np.mean(cosines)) if cosines else None,
        least_cosine=min(cosines) if cosines else None,
        conflict_fraction=sums.num_conflicts / max(1, sums.num_values),
    )


def summary(found: Sequence[LayerMoves]) -> str:
    """Say in a sentence what the figures mean."""
    whole = found[-1]
    if whole.cosine is None:
        return "fewer than two models moved"
    if whole.cosine > _ALIKE:
        return "the models moved in like directions"
    if whole.cosine < -_ALIKE:
        return "the models moved against each other: an average undoes what they learned"
    return "the models moved in unrelated directions, as models tuned on different data do"


_ALIKE = 0.3
