"""Which layers of the language model receive updates.

One decision is made here: a selector maps a number of layers, and a score of each if it wants one,
to 0-based indices; it knows nothing else. What the scores are is worked out in `layer_scores`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from consomme.base.bounds import NonNegativeInt, PositiveFraction, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.registry import Registry


class LayerSelector(Protocol):
    """Chooses layers."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the chosen 0-based indices, ascending.

        Args:
            num_layers: Of the language model.
            scores: One per layer, for `by_score`.

        Raises:
            RecipeError: The choice does not fit a model of this depth.
        """


LAYER_SELECTORS: Registry[LayerSelector] = Registry("layer selector", "consomme/train/layers.py")


@dataclass(frozen=True, kw_only=True)
class Share(Checked):
    """How many layers: a share of them, or a number."""

    fraction: PositiveFraction = 0.25
    """Share of layers to train, in (0, 1]; the count is rounded up."""

    count: PositiveInt | None = None
    """Number of layers to train, instead of a share."""

    def of(self, num_layers: int) -> int:
        """Return the number of layers.

        Raises:
            RecipeError: There are not so many.
        """
        if self.count is None:
            # Decimal, because 0.07 * 100 is a little more than 7 in floats.
            return math.ceil(Decimal(str(self.fraction)) * num_layers)
        if self.count > num_layers:
            raise RecipeError(
                f"count: found {self.count}, but the language model has {num_layers} layers"
            )
        return self.count


@LAYER_SELECTORS.register("all")
@dataclass(frozen=True, kw_only=True)
class All:
    """Train every layer."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return every index."""
        return tuple(range(num_layers))


@LAYER_SELECTORS.register("sparse_uniform")
@dataclass(frozen=True, kw_only=True)
class SparseUniform(Share):
    """Spread the trained layers evenly over the depth: the visual region.

    A quarter of the layers keeps about 99 % of visual scores in the paper's setting. Embeddings,
    final norm and head stay frozen; the projector is trained.
    Source: arXiv 2412.12785, section on layer selection; ids are `floor(j * L / k)`.
    """

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return so many indices with even gaps."""
        count = self.of(num_layers)
        return tuple(j * num_layers // count for j in range(count))


PRESETS = {
    "paper": (0, 4, 8, 12, 18, 22, 26, 30),
    "code": (1, 5, 9, 13, 19, 23, 27, 31),
}
PRESET_LAYERS = 32


@LAYER_SELECTORS.register("visual_region")
@dataclass(frozen=True, kw_only=True)
class VisualRegion:
    """The eight layers of arXiv 2412.12785, for language models of 32 layers.

    The paper's ids and those of its released code are the same, one apart: whether the paper counts
    from 1 is not said. `sparse_uniform` is the same idea for any depth.
    """

    ids: Literal["paper", "code"] = "paper"
    """Whose ids."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the eight."""
        if num_layers != PRESET_LAYERS:
            raise RecipeError(
                f"visual_region is for {PRESET_LAYERS} layers, the language model has"
                f" {num_layers}; take {{name: sparse_uniform}}"
            )
        return PRESETS[self.ids]


@LAYER_SELECTORS.register("consecutive")
@dataclass(frozen=True, kw_only=True)
class Consecutive(Share):
    """Train neighbours: at the bottom, in the lower or upper middle, or at the top.

    Source: arXiv 2412.12785's comparison; with 8 of 32 layers these are 0-7, 8-15, 16-23, 24-31.
    """

    where: Literal["bottom", "mid_bottom", "mid_top", "top"]
    """Where the neighbours begin: at 0, at a quarter, at half of the depth, or so that they end at
    the last layer."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return neighbours."""
        count = self.of(num_layers)
        last = num_layers - count
        begin = {
            "bottom": 0,
            "mid_bottom": min(num_layers // 4, last),
            "mid_top": min(num_layers // 2, last),
            "top": last,
        }[self.where]
        return tuple(range(begin, begin + count))


@LAYER_SELECTORS.register("hybrid")
@dataclass(frozen=True, kw_only=True)
class Hybrid(Share):
    """Train the lowest and the highest layers, half of the count each.

    Source: arXiv 2412.12785's comparison; how it splits is not given. Of an odd count the bottom
    gets one more.
    """

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return both ends."""
        count = self.of(num_layers)
        top = count // 2
        return (*range(count - top), *range(num_layers - top, num_layers))


@LAYER_SELECTORS.register("every")
@dataclass(frozen=True, kw_only=True)
class Every(Checked):
    """Train every k-th layer."""

    k: PositiveInt
    """1 trains all of them."""

    first: NonNegativeInt = 0
    """The lowest one."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return them."""
        chosen = tuple(range(self.first, num_layers, self.k))
        if not chosen or self.first < 0:
            raise RecipeError(
                f"first: found {self.first}, but the language model has layers 0 to"
                f" {num_layers - 1}"
            )
        return chosen


@LAYER_SELECTORS.register("listed")
@dataclass(frozen=True, kw_only=True)
class LayerList(Checked):
    """Train the layers that are named."""

    ids: tuple[int, ...]
    """0-based; negative ones count from the top, as in Python."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return them in order."""
        strangers = [index for index in self.ids if not -num_layers <= index < num_layers]
        if strangers or not self.ids:
            found = f"{strangers} do not exist" if strangers else "none is named"
            raise RecipeError(f"ids: {found}; the language model has layers 0 to {num_layers - 1}")
        return tuple(sorted({index % num_layers for index in self.ids}))


@LAYER_SELECTORS.register("by_score")
@dataclass(frozen=True, kw_only=True)
class ByScore(Share):
    """Train the layers that a measure says matter most.

    Source: arXiv 2412.12785's comparison. There the measures are taken on a model that was tuned in
    all layers before, so they cost a whole training first.
    """

    measure: Literal[
        "parameter_change",
        "parameter_angle",
        "image_attention",
        "block_influence",
        "multimodal_block_influence",
    ]
    """See `consomme/train/layer_scores.py`. The first two compare with a tuned model, the others
    look at what the model does with some of the training samples."""

    tuned: str | None = None
    """For the first two: a train run or a folder of a model that was tuned from the same start, in
    all layers."""

    keep: Literal["highest", "lowest"] = "highest"
    """Which end is trained."""

    num_samples: PositiveInt = 64
    """Training samples that the others look at."""

    @rule
    def _tuned_model(self) -> Iterator[str]:
        if (self.tuned is None) == self.compares:
            expected = "a tuned model" if self.tuned is None else "none"
            yield f"tuned: found {self.tuned}, expected {expected} for measure={self.measure}"

    @property
    def compares(self) -> bool:
        """Whether the measure compares weights with those of a tuned model."""
        return self.measure.startswith("parameter_")

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the layers at that end; of equal ones the lower first."""
        if scores is None or len(scores) != num_layers:
            raise ValueError(f"{num_layers} layers need as many scores, got {scores}")
        sign = -1 if self.keep == "highest" else 1
        order = sorted(range(num_layers), key=lambda index: (sign * scores[index], index))
        return tuple(sorted(order[: self.of(num_layers)]))


@LAYER_SELECTORS.register("rotating")
@dataclass(frozen=True, kw_only=True)
class Rotating(Share):
    """Train other layers every so many steps, drawn at random, and forget those that were left.

    Optimizer state of layers that are left is given up. Needs the language model to be trained in
    full, with `ddp` or `fsdp2`. Source: LISA, arXiv 2403.17919, which also trains embeddings and
    head all the time: set their states to full.
    """

    every_steps: PositiveInt
    """Steps between draws."""

    seed: int = 0
    """Of the draws."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the first draw."""
        return self.at(0, num_layers)

    def at(self, step: int, num_layers: int) -> tuple[int, ...]:
        """Return what is trained in a step, from 0: a function of the step alone."""
        draw = random.Random(f"rotate-{self.seed}-{step // self.every_steps}")
        return tuple(sorted(draw.sample(range(num_layers), self.of(num_layers))))
