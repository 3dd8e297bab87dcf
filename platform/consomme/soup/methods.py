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
from typing import Annotated, Any, ClassVar, Protocol

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
        count = max(1, int(self.density * values.size))
        least = [_largest(values, model, count) for model in range(len(values.models))]

        def trimmed(model: int, start: int, stop: int) -> Floats:
            found = values.read(model, start, stop) - values.read(-1, start, stop)
            found[np.abs(found) < least[model]] = 0
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
            stays = _random(self.seed, values, model, start, stop) < self.density
            return np.where(stays, found / found.dtype.type(self.density), 0).astype(found.dtype)

        if self.signs:
            return _agreeing(values, shares, self.scale, dropped)
        return _added(values, shares, self.scale, dropped)


@METHODS.register("della")
@dataclass(frozen=True, kw_only=True)
class Della(_FromBase):
    """Drop small differences more often than large ones, then agree on signs as in TIES.

    In each row, the difference of rank r of n, 0 being the largest, is dropped with the probability
    `1 - density - window / 2 + window * r / n`; what stays is enlarged accordingly.
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

        def pruned(model: int, start: int, stop: int) -> Floats:
            found = values.read(model, start, stop) - values.read(-1, start, stop)
            rows = np.abs(found).reshape(-1, values.row)
            rank = np.empty(rows.shape, np.float64)
            order = np.argsort(-rows, axis=1, kind="stable")
            np.put_along_axis(rank, order, np.arange(values.row, dtype=np.float64)[None], axis=1)
            drops = 1 - self.density - self.window / 2 + self.window * rank / values.row
            stays = 1 - drops.reshape(-1)
            is_kept = _random(self.seed, values, model, start, stop) < stays
            return np.where(is_kept, found / stays, 0).astype(found.dtype)

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
        found = [
            difference * difference.dtype.type(share)
            for model, share in enumerate(shares)
            for difference in [changed(model, start, stop)]
        ]
        sign = np.sign(np.sum(found, axis=0))
        total, divisor = np.zeros_like(found[0]), np.zeros_like(found[0])
        for difference, share in zip(found, shares, strict=True):
            agrees = (np.sign(difference) == sign) & (sign != 0)
            total += np.where(agrees, difference, 0)
            divisor += np.where(agrees, divisor.dtype.type(share), 0)
        mean = np.divide(total, divisor, out=np.zeros_like(total), where=divisor > 0)
        mixed: Floats = values.read(-1, start, stop) + mean * mean.dtype.type(scale)
        return mixed

    return mix


def _largest(values: Values, model: int, count: int) -> Any:
    """Return the magnitude that so many differences of a model reach, exactly.

    Magnitudes are ordered as their bits are. So two passes over the tensor suffice: one counts the
    upper halves of the bits, one the lower halves of those with the right upper half.
    """

    def bits(place: tuple[int, int]) -> NDArray[np.uint32]:
        found = values.read(model, *place) - values.read(-1, *place)
        return np.abs(found).astype(np.float32).view(np.uint32)

    def upper(place: tuple[int, int]) -> NDArray[np.int64]:
        return np.bincount(bits(place) >> np.uint32(16), minlength=1 << 16)

    counts = np.sum([np.zeros(1 << 16, np.int64), *values.pool.map(upper, values.pieces())], axis=0)
    high, above = _bin_of(counts, count)

    def lower(place: tuple[int, int]) -> NDArray[np.int64]:
        found = bits(place)
        found = found[found >> np.uint32(16) == high]
        return np.bincount(found & np.uint32(0xFFFF), minlength=1 << 16)

    counts = np.sum([np.zeros(1 << 16, np.int64), *values.pool.map(lower, values.pieces())], axis=0)
    low, _ = _bin_of(counts, count - above)
    return np.array([high << 16 | low], dtype=np.uint32).view(np.float32)[0]


def _bin_of(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Return the bin with the value that so many reach, and how many are in the bins above it."""
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, wanted))
    number = len(counts) - 1 - place
    return number, int(reached[place] - counts[number])


def _random(seed: int, values: Values, model: int, start: int, stop: int) -> NDArray[np.float64]:
    """Return uniform numbers, the same for a place of a tensor however it is cut into pieces."""
    text = f"{seed}\0{values.models[model]}\0{values.name}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    # Each step of the counter gives four numbers.
    first = start // 4
    generator = np.random.Generator(np.random.Philox(key=key, counter=first))
    return generator.random(stop - 4 * first)[start - 4 * first :]
