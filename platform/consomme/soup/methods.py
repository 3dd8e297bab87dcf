"""Ways to mix the weights of models: one small class each, with its paper.

A method sees one tensor of all models at a time, flat and piece by piece, so that memory does not
grow with models. It may look at the whole tensor first (angles, thresholds), and then says how each
piece is mixed. Differences are those from the base, the model that all were tuned from.

Everything is computed in float32 from differences that are exact or nearly so: the models are close
to each other, and their differences are rounded at their own size, not at that of the weights. So
the mix of equal models is that model bit for bit. Angles are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Interval

from consomme.base.bounds import NonNegativeInt
from consomme.base.checked import Checked, rule
from consomme.base.registry import Registry
from consomme.soup.arrays import Floats
from consomme.soup.formulas import (
    Mixer,
    Values,
    added_up,
    agreeing,
    drawn,
    inner_products,
    karcher_mean,
    least_of_largest,
    near_one,
    ranks_of,
    sum_of,
)

Density = Annotated[float, Interval(gt=0, le=1)]


class MixMethod(Protocol):
    """Interface of every registered method."""

    needs_base: ClassVar[bool]
    """Whether a base has to be named."""

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Look at a tensor and return how it is mixed.

        Args:
            values: The tensor of all models.
            shares: Of the models, summing to one; none is zero.
        """


METHODS: Registry[MixMethod] = Registry("mix method", "consomme/soup/methods.py")


@METHODS.register("average")
@dataclass(frozen=True, kw_only=True)
class Average:
    """The weighted average.

    Source: Wortsman et al., Model soups (arXiv 2203.05482); POINTS (arXiv 2409.04828).
    """

    needs_base: ClassVar[bool] = False

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        return sum_of(values, shares, 0, 1.0)


@dataclass(frozen=True, kw_only=True)
class _FromBase(Checked):
    """What methods share that add differences to the base."""

    needs_base: ClassVar[bool] = True

    scale: float = 1.0
    """Factor of the mixed differences: 1 with one model gives that model."""

    @rule
    def _finite_scale(self) -> Iterator[str]:
        if not math.isfinite(self.scale):
            yield f"scale: found {self.scale}, expected a number"


@METHODS.register("task_arithmetic")
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(_FromBase):
    """The base plus the weighted average of the differences, scaled.

    The lambda of the paper, the same for all of n models, is `scale / n`.
    Source: Ilharco et al., Editing Models with Task Arithmetic (arXiv 2212.04089).
    """

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        return sum_of(values, [self.scale * share for share in shares], -1, 1.0)


@METHODS.register("ties")
@dataclass(frozen=True, kw_only=True)
class Ties(_FromBase):
    """Keep the largest differences of each model, agree on signs, and average what agrees.

    Trimmed tensor by tensor, as mergekit does; the paper trims the whole model at once.
    Source: Yadav et al., TIES-Merging (arXiv 2306.01708).
    """

    density: Density = 0.2
    """Share of the differences of each tensor that are kept, the largest ones."""

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        least = least_of_largest(values, max(1, int(self.density * values.size)))

        def trimmed(model: int, start: int, stop: int) -> Floats:
            found = values.read(model, start, stop) - values.read(-1, start, stop)
            found *= np.abs(found) >= least[model]
            return found

        return agreeing(values, shares, self.scale, trimmed)


@METHODS.register("dare")
@dataclass(frozen=True, kw_only=True)
class Dare(_FromBase):
    """Drop differences at random and enlarge the others, then add them up, or agree on signs first.

    Source: Yu et al., Language Models are Super Mario (arXiv 2311.03099).
    """

    density: Density = 0.5
    """Probability that a difference stays; 1 - p in the paper."""

    signs: bool = False
    """Whether signs are agreed upon as in TIES before differences are added up."""

    seed: NonNegativeInt = 0
    """Of what is dropped; it depends on the label of the model and the name of the tensor too."""

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""

        def dropped(model: int, start: int, stop: int) -> Floats:
            found = values.read(model, start, stop) - values.read(-1, start, stop)
            found *= drawn(self.seed, values, model, start, stop) < self.density
            return found / found.dtype.type(self.density)

        if self.signs:
            return agreeing(values, shares, self.scale, dropped)
        return added_up(values, shares, self.scale, dropped)


@METHODS.register("della")
@dataclass(frozen=True, kw_only=True)
class Della(_FromBase):
    """Drop small differences more often than large ones, then agree on signs as in TIES.

    In each row, the difference of rank r of n, 0 being the largest, is dropped with the probability
    `1 - density - window / 2 + window * r / n`; what stays is enlarged accordingly. Of equal
    differences the last one has the smaller rank.
    Source: Deep et al., DELLA-Merging (arXiv 2406.11617), MagPrune.
    """

    density: Density = 0.5
    """Mean probability that a difference stays."""

    window: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Difference between the largest and the smallest probability; epsilon in the paper."""

    seed: NonNegativeInt = 0
    """Of what is dropped; see `Dare`."""

    @rule
    def _probabilities(self) -> Iterator[str]:
        if not self.window / 2 < self.density <= 1 - self.window / 2:
            yield (
                f"window: found {self.window} with density {self.density}, whose probabilities"
                f" reach from {self.density - self.window / 2:g} to"
                f" {self.density + self.window / 2:g}; expected them within 0 and 1"
            )

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        # Of the smallest difference of a row, which has the largest rank.
        least = self.density - self.window / 2 + self.window / values.row

        def pruned(model: int, start: int, stop: int) -> Floats:
            found = values.read(model, start, stop) - values.read(-1, start, stop)
            keeps = least + self.window / values.row * ranks_of(found.reshape(-1, values.row))
            found *= drawn(self.seed, values, model, start, stop) < keeps.reshape(-1)
            return (found / keeps.reshape(-1)).astype(found.dtype, copy=False)

        return agreeing(values, shares, self.scale, pruned)


@METHODS.register("slerp")
@dataclass(frozen=True, kw_only=True)
class Slerp:
    """The mean on the sphere, tensor by tensor: of two models the point on the arc between them.

    Each tensor is a direction and a length; directions are averaged on the sphere (Karcher mean,
    which for two is spherical interpolation), lengths as numbers. Tensors of zeros, and those whose
    directions are opposite, have no such mean and are averaged.
    Source: Shoemake, Animating Rotation with Quaternion Curves (1985); Karcher, Riemannian Center
    of Mass (1977).
    """

    needs_base: ClassVar[bool] = False

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        dots = inner_products(values, None)
        lengths = np.sqrt(np.diag(dots))
        share = np.asarray(shares)
        if not lengths.all():
            return sum_of(values, shares, 0, 1.0)
        cosines = dots / np.outer(lengths, lengths)
        mean = karcher_mean(cosines, share)
        if mean is None:
            return sum_of(values, shares, 0, 1.0)
        factors = mean / lengths * float(lengths @ share)
        return sum_of(values, factors.tolist(), 0, near_one(math.fsum(factors)))


@METHODS.register("model_stock")
@dataclass(frozen=True, kw_only=True)
class ModelStock:
    """Between the base and the average, where the angle between the differences says.

    With n models and the mean cosine c between their differences in a tensor, the average gets the
    share n c / (1 + (n - 1) c), and the base the rest; at least none. Models are weighted alike in
    the paper.
    Source: Jang et al., Model Stock (arXiv 2403.19522), equation 4 and section 3.3.
    """

    needs_base: ClassVar[bool] = True

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        count = len(shares)
        if count == 1:
            return sum_of(values, [1.0], -1, 1.0)
        dots = inner_products(values, -1)
        lengths = np.sqrt(np.diag(dots))
        pairs = np.triu_indices(count, 1)
        norms = np.outer(lengths, lengths)[pairs]
        moved = norms > 0
        cosine = float((dots[pairs][moved] / norms[moved]).mean()) if moved.any() else 0.0
        ratio = max(0.0, count * cosine / (1 + (count - 1) * cosine)) if cosine > 0 else 0.0
        return sum_of(values, [ratio * share for share in shares], -1, 1.0)
