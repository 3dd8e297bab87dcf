"""Which layers of the language model receive updates.

One decision is made here: a selector maps a number of layers to 0-based indices and knows nothing
else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry


class LayerSelector(Protocol):
    """Chooses layers."""

    def __call__(self, num_layers: int) -> tuple[int, ...]:
        """Return the chosen 0-based indices, ascending."""


LAYER_SELECTORS: Registry[LayerSelector] = Registry("layer selector", "consomme/train/layers.py")


@LAYER_SELECTORS.register("all")
@dataclass(frozen=True, kw_only=True)
class All:
    """Train every layer, and with them embeddings, final norm and head."""

    def __call__(self, num_layers: int) -> tuple[int, ...]:
        """Return every index."""
        return tuple(range(num_layers))


@LAYER_SELECTORS.register("sparse_uniform")
@dataclass(frozen=True, kw_only=True)
class SparseUniform:
    """Spread the trained layers evenly over the depth: the visual region.

    A quarter of the layers keeps about 99 % of visual scores in the paper's setting. Embeddings,
    final norm and head stay frozen; the projector is trained.
    Source: arXiv 2412.12785, section on layer selection; ids are `floor(j * L / k)`.
    """

    fraction: float = 0.25
    """Share of layers to train, in (0, 1]; the count is rounded up."""

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.fraction <= 1:
            raise RecipeError(
                f"fraction: found {self.fraction}, expected a share in (0, 1]; 0 trains nothing"
            )

    def __call__(self, num_layers: int) -> tuple[int, ...]:
        """Return `ceil(fraction * num_layers)` indices with even gaps."""
        # Decimal, because 0.07 * 100 is a little more than 7 in floats.
        count = math.ceil(Decimal(str(self.fraction)) * num_layers)
        return tuple(j * num_layers // count for j in range(count))
