"""Ways to mix the weights of models: one small class each, with its paper.

A method sees one tensor of all models at a time, flat and piece by piece, so that memory does not
grow with models. It may look at the whole tensor first (angles, thresholds), and then says how each
piece is mixed. Differences are those from the base, the model that all were tuned from.

Everything is computed in float32 from differences that are exact or nearly so: the models are close
to each other, and their differences are rounded at their own size, not at that of the weights. So
the mix of equal models is that model bit for bit. Angles are summed in float64.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from consomme.base.bounds import NonNegativeInt
from consomme.base.checked import Checked, rule
from consomme.base.registry import Registry
from consomme.soup.arrays import Floats

# Shapes: M models; values of a tensor are flat.
Mixer = Callable[[int, int], Floats]
"""Returns the mixed values from a start to a stop."""

Density = Annotated[float, Interval(gt=0, le=1)]


class Values(Protocol):
    """One tensor of all models."""

    @property
    def name(self) -> str:
        """Name of the tensor."""

    @property
    def row(self) -> int:
        """Values of a row: the size of the last dimension."""

    @property
    def size(self) -> int:
        """Number of values."""

    @property
    def models(self) -> Sequence[str]:
        """Labels of the models."""

    @property
    def pool(self) -> Executor:
        """Threads to look at several pieces at a time."""

    def read(self, model: int, start: int, stop: int) -> Floats:
        """Return values of a model; -1 is the base."""

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield start and stop of pieces, which end at the end of a row."""


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


def _sum_of(values: Values, factors: Sequence[float], start_from: int, total: float) -> Mixer:
    """Return a mixer for `total * x + sum(factors * (models - x))`, where x is a model."""
    # Equal parts are summed up and divided: the sum of a few stored numbers is mostly exact, and a
    # mean between two numbers that can be stored has to stay exactly between them to be rounded as
    # it should.
    divisor = round(1 / factors[0]) if len(set(factors)) == 1 and factors[0] > 0 else None
    if divisor is not None and 1 / divisor != factors[0]:
        divisor = None

    def mix(start: int, stop: int) -> Floats:
        origin = values.read(start_from, start, stop)
        mixed: Floats = origin * origin.dtype.type(total)
        if divisor is not None:
            sums = np.zeros_like(origin)
            for model in range(len(factors)):
                if model != start_from:
                    sums = sums + (values.read(model, start, stop) - origin)
            return mixed + sums / sums.dtype.type(divisor)
        for model, factor in enumerate(factors):
            if model != start_from and factor != 0.0:
                difference = values.read(model, start, stop) - origin
                difference *= difference.dtype.type(factor)
                mixed = mixed + difference
        return mixed

    return mix


def _dots(values: Values, origin: int | None) -> NDArray[np.float64]:
    """Return the inner products of the models, M × M, or of their differences from one."""
    count = len(values.models)

    def piece(place: tuple[int, int]) -> NDArray[np.float64]:
        stacked = np.stack([values.read(k, *place).astype(np.float64) for k in range(count)])
        if origin is not None:
            stacked -= values.read(origin, *place).astype(np.float64)
        found: NDArray[np.float64] = stacked @ stacked.T
        return found

    # In the order of pieces, so that the sum is the same however many threads there are.
    total = np.zeros((count, count))
    for found in values.pool.map(piece, values.pieces()):
        total += found
    return total


@METHODS.register("average")
@dataclass(frozen=True, kw_only=True)
class Average:
    """The weighted average.

    Source: Wortsman et al., Model soups (arXiv 2203.05482); POINTS (arXiv 2409.04828).
    """

    needs_base: ClassVar[bool] = False

    def __call__(self, values: Values, shares: Sequence[float]) -> Mixer:
        """Mix a tensor."""
        return _sum_of(values, shares, 0, 1.0)


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
        return _sum_of(values, [self.scale * share for share in shares], -1, 1.0)


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

        return _agreeing(values, shares, self.scale, trimmed)


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
            found *= _random(self.seed, values, model, start, stop) < self.density
            return found / found.dtype.type(self.density)

        if self.signs:
            return _agreeing(values, shares, self.scale, dropped)
        return _added(values, shares, self.scale, dropped)


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
            keeps = least + self.window / values.row * _ranks(found.reshape(-1, values.row))
            found *= _random(self.seed, values, model, start, stop) < keeps.reshape(-1)
            return (found / keeps.reshape(-1)).astype(found.dtype, copy=False)

        return _agreeing(values, shares, self.scale, pruned)


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
        dots = _dots(values, None)
        lengths = np.sqrt(np.diag(dots))
        share = np.asarray(shares)
        if not lengths.all():
            return _sum_of(values, shares, 0, 1.0)
        cosines = dots / np.outer(lengths, lengths)
        mean = karcher_mean(cosines, share)
        if mean is None:
            return _sum_of(values, shares, 0, 1.0)
        factors = mean / lengths * float(lengths @ share)
        return _sum_of(values, factors.tolist(), 0, _near_one(math.fsum(factors)))


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
            return _sum_of(values, [1.0], -1, 1.0)
        dots = _dots(values, -1)
        lengths = np.sqrt(np.diag(dots))
        pairs = np.triu_indices(count, 1)
        norms = np.outer(lengths, lengths)[pairs]
        moved = norms > 0
        cosine = float((dots[pairs][moved] / norms[moved]).mean()) if moved.any() else 0.0
        ratio = max(0.0, count * cosine / (1 + (count - 1) * cosine)) if cosine > 0 else 0.0
        return _sum_of(values, [ratio * share for share in shares], -1, 1.0)


def karcher_mean(
    cosines: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the mean of unit vectors on the sphere, as factors of these vectors.

    The steps are taken in the span of the vectors, of which only the angles are needed.

    Args:
        cosines: Inner products of the vectors, M × M.
        shares: Of the vectors, summing to one.

    Returns:
        M factors; None if the vectors cancel each other.
    """

    def unit(factors: NDArray[np.float64]) -> NDArray[np.float64] | None:
        square = float(factors @ cosines @ factors)
        return factors / math.sqrt(square) if square > _TINY else None

    mean = unit(shares)
    for _ in range(_MAX_STEPS):
        if mean is None:
            return None
        cosine = np.clip(cosines @ mean, -1.0, 1.0)
        angle = np.arccos(cosine)
        sine = np.sin(angle)
        if (angle > math.pi - _TINY).any():
            return None
        stretch = np.divide(angle, sine, out=np.ones_like(angle), where=sine > _TINY)
        weights = shares * stretch
        step = weights - mean * float(weights @ cosine)
        length = math.sqrt(max(0.0, float(step @ cosines @ step)))
        if length < _CONVERGED:
            return mean
        mean = unit(math.cos(length) * mean + math.sin(length) / length * step)
    return mean


_TINY = 1e-12
_CONVERGED = 1e-11
_MAX_STEPS = 200


def _near_one(total: float) -> float:
    """Return 1 for what differs from it by rounding only: equal models stay what they are."""
    return 1.0 if abs(total - 1) < 1e-9 else total


def _added(
    values: Values,
    shares: Sequence[float],
    scale: float,
    changed: Callable[[int, int, int], Floats],
) -> Mixer:
    """Add the changed differences to the base."""

    def mix(start: int, stop: int) -> Floats:
        mixed = values.read(-1, start, stop).copy()
        for model, share in enumerate(shares):
            difference = changed(model, start, stop)
            mixed = mixed + difference * difference.dtype.type(scale * share)
        return mixed

    return mix


def _agreeing(
    values: Values,
    shares: Sequence[float],
    scale: float,
    changed: Callable[[int, int, int], Floats],
) -> Mixer:
    """Add to the base the weighted mean of the differences whose sign is that of their sum."""

    def mix(start: int, stop: int) -> Floats:
        origin = values.read(-1, start, stop)
        # What is positive and what is negative: the sum, and the share of the models.
        above, below, num_above, num_below = (np.zeros_like(origin) for _ in range(4))
        for model, share in enumerate(shares):
            difference = changed(model, start, stop)
            difference *= difference.dtype.type(share)
            above += np.maximum(difference, 0)
            below += np.minimum(difference, 0)
            num_above += (difference > 0) * difference.dtype.type(share)
            num_below += (difference < 0) * difference.dtype.type(share)
        is_above = above > -below
        total = np.where(is_above, above, below)
        divisor = np.where(is_above, num_above, num_below)
        total *= (above != -below) & (divisor > 0)
        np.divide(total, divisor, out=total, where=divisor > 0)
        total *= total.dtype.type(scale)
        total += origin
        return total

    return mix


def least_of_largest(values: Values, count: int) -> list[float]:
    """Return for each model the magnitude that so many of its differences reach, exactly.

    One pass over a few differences says between which magnitudes it lies; the next counts those
    above, and keeps those in between. Should it lie elsewhere, another pass is made.
    """
    few = list(values.pieces())
    few = few[:: max(1, len(few) // _LOOKED_AT)]
    models = range(len(values.models))
    parts = values.pool.map(lambda place: _magnitudes(values, place, _EVERY), few)
    sample_M = [np.sort(np.concatenate(some)) for some in zip(*parts, strict=True)]
    bounds = [_bounds(sample, count / values.size) for sample in sample_M]
    found: list[float] = [math.nan] * len(values.models)
    while any(map(math.isnan, found)):
        above = [0 for _ in models]
        inside: list[list[Floats]] = [[] for _ in models]

        def between(place: tuple[int, int]) -> list[tuple[int, Floats]]:
            some = []
            for magnitude, (low, high) in zip(_magnitudes(values, place, 1), bounds, strict=True):
                is_high = magnitude > high
                is_inside = magnitude >= low
                is_inside &= ~is_high
                some.append((int(np.count_nonzero(is_high)), magnitude[is_inside]))
            return some

        for some in values.pool.map(between, values.pieces()):
            for model, (number, kept) in enumerate(some):
                above[model] += number
                inside[model].append(kept)
        for model in models:
            candidates = np.concatenate(inside[model])
            place = count - above[model]
            if 1 <= place <= len(candidates):
                found[model] = float(np.partition(candidates, -place)[-place])
            else:
                bounds[model] = (0.0, bounds[model][0]) if place > 0 else (bounds[model][1], np.inf)
    return found


_LOOKED_AT = 64
_EVERY = 61
_MARGIN = 0.01


def _magnitudes(values: Values, place: tuple[int, int], every: int) -> list[Floats]:
    """Return the magnitudes of the differences of each model in a piece, or of some of them."""
    base = values.read(-1, *place)[::every]
    return [
        np.abs(values.read(model, *place)[::every] - base) for model in range(len(values.models))
    ]


def _bounds(sample: Floats, fraction: float) -> tuple[float, float]:
    """Return magnitudes between which the one lies that this fraction reaches, most likely."""
    places = (1 - fraction - _MARGIN, 1 - fraction + _MARGIN)
    low, high = (int(np.clip(place * len(sample), 0, len(sample) - 1)) for place in places)
    return (
        float(sample[low]) if places[0] > 0 else 0.0,
        float(sample[high]) if places[1] < 1 else math.inf,
    )


def _ranks(rows: Floats) -> NDArray[np.float32]:
    """Return the rank of each magnitude in its row, 0 the smallest; of equal ones the first.

    Magnitudes are ordered as their bits are. With their places in the lower half of a word, whole
    words are sorted, which is several times as fast as sorting places.
    """
    words = np.abs(rows).astype("<f4").view("<u4").astype(np.uint64)
    words <<= np.uint64(32)
    words |= np.arange(rows.shape[1], dtype=np.uint64)
    words.sort(axis=1)
    order = words.astype(np.uint32).astype(np.int64)
    ranks = np.empty(rows.shape, np.float32)
    numbers = np.broadcast_to(np.arange(rows.shape[1], dtype=np.float32), rows.shape)
    np.put_along_axis(ranks, order, numbers, axis=1)
    return ranks


def _random(seed: int, values: Values, model: int, start: int, stop: int) -> NDArray[np.float64]:
    """Return uniform numbers, the same for a place of a tensor however it is cut into pieces."""
    text = f"{seed}\0{values.models[model]}\0{values.name}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    source = np.random.PCG64DXSM(key)
    source.advance(start)
    return np.random.Generator(source).random(stop - start)
