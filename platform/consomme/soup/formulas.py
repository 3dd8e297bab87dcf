"""What methods of mixing are made of: sums, angles, thresholds and draws, piece by piece."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from consomme.soup.arrays import Floats

# Shapes: M models; values of a tensor are flat.
Mixer = Callable[[int, int], Floats]
"""Returns the mixed values from a start to a stop."""


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


def sum_of(values: Values, factors: Sequence[float], start_from: int, total: float) -> Mixer:
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


def inner_products(values: Values, origin: int | None) -> NDArray[np.float64]:
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


def near_one(total: float) -> float:
    """Return 1 for what differs from it by rounding only: equal models stay what they are."""
    return 1.0 if abs(total - 1) < 1e-9 else total


def added_up(
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


def agreeing(
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


def ranks_of(rows: Floats) -> NDArray[np.float32]:
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


def drawn(seed: int, values: Values, model: int, start: int, stop: int) -> NDArray[np.float64]:
    """Return uniform numbers, the same for a place of a tensor however it is cut into pieces."""
    text = f"{seed}\0{values.models[model]}\0{values.name}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    source = np.random.PCG64DXSM(key)
    source.advance(start)
    return np.random.Generator(source).random(stop - start)
