"""Select the layers of the language model that receive updates.

A selector maps the number of layers, and a score per layer if it asks for scores, to 0-based
indices. Everything else that depends on the selector (scores, rotation, what a plan assumes) it
answers itself, so adding one is adding a registered subclass.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Literal

from consomme.base.bounds import NonNegativeInt, PositiveFraction, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.registry import Registry
from consomme.base.schema import located


@dataclass(frozen=True, kw_only=True)
class ScoringInputs:
    """What a selector may measure layers with, before training."""

    model: Any
    """The model that training starts from, in eval mode."""

    chat: Any
    """The model's `ChatEncoder`."""

    batches: Callable[[int], Iterable[Mapping[str, Any]]]
    """Maps a number of training samples to batches of them."""


class LayerSelector(ABC):
    """Selects layers. A subclass overrides what differs."""

    is_rotating: ClassVar[bool] = False
    """Whether other layers are trained in other steps."""

    plan_note: ClassVar[str | None] = None
    """What a plan tells the user about the selection, if anything."""

    @abstractmethod
    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the selected 0-based indices, ascending; those of step 0 if layers rotate.

        Args:
            num_layers: Of the language model.
            scores: What `score` returned.

        Raises:
            RecipeError: The selection does not fit a model of this depth.
        """

    def score(self, inputs: ScoringInputs) -> list[float] | None:
        """Return a score per layer; None if the selection needs no scores."""
        return None

    def layers_at(self, step: int, selected: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
        """Return the layers that are trained in a step.

        Args:
            step: Counted from 0.
            selected: What the selector returned at the start of the run.
            num_layers: Of the language model.
        """
        return selected

    def planned(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers that a plan assumes, without scores."""
        return self(num_layers)


LAYER_SELECTORS: Registry[LayerSelector] = Registry("layer selector", "consomme/train/layers.py")


@dataclass(frozen=True, kw_only=True)
class LayerCount(Checked, LayerSelector):
    """Base of selectors that train a share of the layers, or a number of them."""

    fraction: PositiveFraction = 0.25
    """Share of layers to train, in (0, 1]; the count is rounded up."""

    count: PositiveInt | None = None
    """Number of layers to train, instead of a share."""

    def num_selected(self, num_layers: int) -> int:
        """Return the number of layers to train.

        Raises:
            RecipeError: The model has fewer layers.
        """
        if self.count is None:
            # Decimal, because 0.07 * 100 is slightly more than 7 in floats.
            return math.ceil(Decimal(str(self.fraction)) * num_layers)
        if self.count > num_layers:
            raise RecipeError(
                f"count: found {self.count}, but the language model has {num_layers} layers"
            )
        return self.count


@LAYER_SELECTORS.register("all")
@dataclass(frozen=True, kw_only=True)
class All(LayerSelector):
    """Train every layer."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return every index."""
        return tuple(range(num_layers))


@LAYER_SELECTORS.register("sparse_uniform")
@dataclass(frozen=True, kw_only=True)
class SparseUniform(LayerCount):
    """Train layers at even distances over the depth: the visual region.

    A quarter of the layers keeps about 99 % of visual scores in the paper's setting. Embeddings,
    final norm and head stay frozen; the projector is trained.
    Source: arXiv 2412.12785, section on layer selection; ids are `floor(j * L / k)`.
    """

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return evenly spaced indices."""
        count = self.num_selected(num_layers)
        return tuple(j * num_layers // count for j in range(count))


PRESETS = {
    "paper": (0, 4, 8, 12, 18, 22, 26, 30),
    "code": (1, 5, 9, 13, 19, 23, 27, 31),
}
PRESET_LAYERS = 32


@LAYER_SELECTORS.register("visual_region")
@dataclass(frozen=True, kw_only=True)
class VisualRegion(LayerSelector):
    """The eight layers of arXiv 2412.12785, for language models of 32 layers.

    The ids of the released code are those of the paper plus one: the paper does not say whether it
    counts from 1. `sparse_uniform` is the same idea for any depth.
    """

    ids: Literal["paper", "code"] = "paper"
    """Ids as printed in the paper, or as in its released code."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the eight indices."""
        if num_layers != PRESET_LAYERS:
            raise RecipeError(
                f"visual_region is for {PRESET_LAYERS} layers, the language model has"
                f" {num_layers}; use {{name: sparse_uniform}}"
            )
        return PRESETS[self.ids]


@LAYER_SELECTORS.register("consecutive")
@dataclass(frozen=True, kw_only=True)
class Consecutive(LayerCount):
    """Train consecutive layers: at the bottom, in the lower or upper middle, or at the top.

    Source: arXiv 2412.12785's comparison; with 8 of 32 layers these are 0-7, 8-15, 16-23, 24-31.
    """

    where: Literal["bottom", "mid_bottom", "mid_top", "top"]
    """Where the layers begin: at 0, at a quarter or half of the depth, or so that they end at the
    last layer."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return consecutive indices."""
        count = self.num_selected(num_layers)
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
class Hybrid(LayerCount):
    """Train the lowest and the highest layers, half of the count each.

    Source: arXiv 2412.12785's comparison, which does not say how it splits. With an odd count the
    bottom gets one more.
    """

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return both ends."""
        count = self.num_selected(num_layers)
        top = count // 2
        return (*range(count - top), *range(num_layers - top, num_layers))


@LAYER_SELECTORS.register("every")
@dataclass(frozen=True, kw_only=True)
class Every(Checked, LayerSelector):
    """Train every k-th layer."""

    k: PositiveInt
    """Distance between trained layers; 1 trains all of them."""

    first: NonNegativeInt = 0
    """Lowest trained layer."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return every k-th index from `first`."""
        chosen = tuple(range(self.first, num_layers, self.k))
        if not chosen or self.first < 0:
            raise RecipeError(
                f"first: found {self.first}, but the language model has layers 0 to"
                f" {num_layers - 1}"
            )
        return chosen


@LAYER_SELECTORS.register("listed")
@dataclass(frozen=True, kw_only=True)
class LayerList(Checked, LayerSelector):
    """Train the listed layers."""

    ids: tuple[int, ...]
    """0-based indices; negative ones count from the top, as in Python."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the indices in order."""
        unknown = [index for index in self.ids if not -num_layers <= index < num_layers]
        if unknown or not self.ids:
            found = f"{unknown} do not exist" if unknown else "none is listed"
            raise RecipeError(f"ids: {found}; the language model has layers 0 to {num_layers - 1}")
        return tuple(sorted({index % num_layers for index in self.ids}))


@LAYER_SELECTORS.register("by_score")
@dataclass(frozen=True, kw_only=True)
class ByScore(LayerCount):
    """Train the layers with the highest or lowest score by some measure of importance.

    Source: arXiv 2412.12785's comparison. There the measures are taken on a model that was tuned in
    all layers before, so they cost a whole training first.
    """

    plan_note: ClassVar[str | None] = (
        "layers are selected by score later; planned as if they were distributed evenly"
    )

    measure: Literal[
        "parameter_change",
        "parameter_angle",
        "image_attention",
        "block_influence",
        "multimodal_block_influence",
    ]
    """See `consomme/train/layer_scores.py`. The first two compare weights with those of a tuned
    model, the others observe the model on some of the training samples."""

    tuned: str | None = located(None)
    """For the first two: a train run, or the folder of a model, that was tuned from the same start
    in all layers."""

    keep: Literal["highest", "lowest"] = "highest"
    """Which scores select a layer."""

    num_samples: PositiveInt = 64
    """Training samples that the other measures observe the model on."""

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
        """Return the layers with the highest or lowest scores; of equal scores the lower layer."""
        if scores is None or len(scores) != num_layers:
            raise ValueError(f"{num_layers} layers need as many scores, got {scores}")
        sign = -1 if self.keep == "highest" else 1
        order = sorted(range(num_layers), key=lambda index: (sign * scores[index], index))
        return tuple(sorted(order[: self.num_selected(num_layers)]))

    def score(self, inputs: ScoringInputs) -> list[float]:
        """Measure every layer."""
        from consomme.models.anatomy import language_layers
        from consomme.models.weights import open_model
        from consomme.storage.model_folder import model_folder
        from consomme.train import layer_scores

        if self.tuned is not None:
            tuned, _ = open_model(model_folder(self.tuned))
            compare = getattr(layer_scores, self.measure)
            changes: list[float] = compare(language_layers(inputs.model), language_layers(tuned))
            return changes
        probe = layer_scores.LayerProbe(inputs.model, inputs.chat.image_token_id)
        probe.observe(inputs.batches(self.num_samples), attention=self.measure == "image_attention")
        scores: list[float] = getattr(probe, self.measure)()
        return scores

    def planned(self, num_layers: int) -> tuple[int, ...]:
        """Assume evenly distributed layers."""
        return SparseUniform(fraction=self.fraction, count=self.count)(num_layers)


@LAYER_SELECTORS.register("rotating")
@dataclass(frozen=True, kw_only=True)
class Rotating(LayerCount):
    """Train other layers every few steps, drawn at random.

    Layers that are no longer trained lose their optimizer state. Needs `language_model.state=full`
    and a parallelism that can rotate, such as `ddp` or `fsdp2`. Source: LISA, arXiv 2403.17919,
    which also trains embeddings and head in every step: set their states to full.
    """

    is_rotating: ClassVar[bool] = True
    plan_note: ClassVar[str | None] = (
        "layers rotate; planned for one draw, checkpoints hold what all draws train"
    )

    every_steps: PositiveInt
    """Steps between draws."""

    seed: int = 0
    """Seed of the draws."""

    def __call__(self, num_layers: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the first draw."""
        return self.at(0, num_layers)

    def layers_at(self, step: int, selected: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
        """Return the draw of a step."""
        return self.at(step, num_layers)

    def at(self, step: int, num_layers: int) -> tuple[int, ...]:
        """Return the draw of a step, counted from 0: a function of the step alone."""
        draw = random.Random(f"rotate-{self.seed}-{step // self.every_steps}")
        return tuple(sorted(draw.sample(range(num_layers), self.num_selected(num_layers))))
