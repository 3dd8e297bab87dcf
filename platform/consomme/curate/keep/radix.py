"""Finds the exact k-th smallest score of a stream, with memory that does not grow with the stream.

The one decision: rank by the bits of the float32, sixteen at a time. A float32 maps to an unsigned
integer of the same order, so two counting passes of 65,536 bins each give the exact value that a
sort would give, histograms of parts add up to the histogram of the whole, and neither order nor
partition of the input can matter. Equal scores are ranked by a 64-bit hash of the sample id, again
sixteen bits at a time; those passes are made only when the cut falls inside a group of equal
scores.

Passes: two over the scores, up to four more over the hashes of tied samples.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError

# Shapes: N samples.
_BINS = 1 << 16
_CHUNK = 1 << 20

Chunk = tuple[NDArray[np.floating], NDArray[np.uint64]]
"""Scores and sample-id hashes of some samples, aligned."""

Weighted = tuple[NDArray[np.floating], NDArray[np.uint64], NDArray[np.floating]]
"""The same, and weights."""


def float_keys(values_N: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Map float32 values to unsigned integers of the same order; -0.0 equals 0.0.

    NaN maps above +inf (or below -inf, by its sign bit); callers take NaN out first.
    """
    # Adding zero turns -0.0 into 0.0, so that the two are a tie and not an order.
    bits = (values_N.astype(np.float32) + np.float32(0.0)).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    return np.where(negative, ~bits, bits | np.uint32(1 << 31))


def key_value(key: int) -> float:
    """Return the float32 value that `float_keys` maps to `key`."""
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


class FloatHistogram:
    """Counts float32 values by sixteen of their bits; add chunk by chunk, merge part by part.

    Args:
        high: Without it, counts by the high sixteen bits. With it, counts only the values whose
            high bits are `high`, by their low sixteen bits: the second pass.
        descending: Counts from the largest value down.
    """

    def __init__(self, high: int | None = None, *, descending: bool = False) -> None:
        self.high = high
        self.descending = descending
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self.num_nan = 0

    def add(self, values_N: NDArray[np.floating]) -> None:
        """Count some values; NaN is counted apart."""
        for start in range(0, len(values_N), _CHUNK):
            keys, num_nan = _ordered_keys(values_N[start : start + _CHUNK], self.descending)
            self.num_nan += num_nan
            if self.high is None:
                digits = keys >> np.uint32(16)
            else:
                digits = keys[keys >> np.uint32(16) == self.high] & np.uint32(0xFFFF)
            self.counts += np.bincount(digits, minlength=_BINS)

    def merge(self, other: Self) -> None:
        """Add the counts of another part of the same pass.

        Raises:
            ValueError: The other histogram is of another pass or direction.
        """
        if (self.high, self.descending) != (other.high, other.descending):
            raise ValueError("histograms of different passes cannot be merged")
        self.counts += other.counts
        self.num_nan += other.num_nan

    @property
    def total(self) -> int:
        """Return how many values were counted, NaN left out."""
        return int(self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a ranked stream was cut. `mask` applies it to any part of the stream by itself."""

    num_scored: int
    """Samples with a score; NaN is not a score."""

    num_missing: int
    """Samples whose score is NaN: never kept."""

    num_kept: int
    """Samples on the kept side, exactly."""

    descending: bool
    """Whether the largest scores are kept."""

    key: int = -1
    """Ordered key of the last kept score; -1 keeps nothing."""

    hash_limit: int = 0
    """Among samples at `key`, those whose hash is at most this are kept."""

    tie_count: int = 0
    """Samples whose score equals the cut."""

    @property
    def value(self) -> float | None:
        """Return the last kept score; None if nothing is kept."""
        if self.key < 0:
            return None
        return key_value(~self.key & 0xFFFFFFFF if self.descending else self.key)

    def mask(self, scores_N: NDArray[np.floating], hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample whether it is kept; independent of which others are in the part."""
        if self.key < 0:
            return np.zeros(len(scores_N), dtype=bool)
        keys = _directed(float_keys(scores_N), self.descending)
        is_tie_kept = (keys == self.key) & (hash_N <= np.uint64(self.hash_limit))
        kept: NDArray[np.bool_] = ((keys < self.key) | is_tie_kept) & ~np.isnan(scores_N)
        return kept


def limit_cut(value: float, descending: bool) -> Cut:
    """Return the cut that keeps every score up to a value; if descending, down to it."""
    key = int(_directed(float_keys(np.array([value])), descending)[0])
    return Cut(
        num_scored=0,
        num_missing=0,
        num_kept=0,
        descending=descending,
        key=key,
        hash_limit=(1 << 64) - 1,
    )


def coarse_order(
    scores_N: NDArray[np.floating], hash_N: NDArray[np.uint64], *, descending: bool = False
) -> NDArray[np.uint64]:
    """Return integers in the order in which `find_cut` ranks: the score, then half of the hash.

    Only for looking at neighbours: samples of one score may differ in the other half. NaN comes
    last, whichever end is first.
    """
    keys = _directed(float_keys(scores_N), descending).astype(np.uint64)
    keys[np.isnan(scores_N)] = (1 << 32) - 1
    return keys << np.uint64(32) | hash_N >> np.uint64(32)


def find_cut(
    chunks: Callable[[], Iterable[Chunk]], count: Callable[[int], int], *, descending: bool = False
) -> Cut:
    """Find the cut that keeps the first samples by (score, hash).

    Args:
        chunks: Starts a fresh walk over all samples; called once per pass. Any order, any chunk
        size.
        count: How many to keep, given how many have a score.
        descending: Keep the largest scores instead of the smallest.

    Raises:
        DataError: Two samples with the same score and the same hash lie on the cut. Ids are unique
            and 64-bit hashes of a hundred million ids collide with a chance of 3 in 10,000, on the
            cut practically never: ids are doubled.
    """
    high = FloatHistogram(descending=descending)
    for scores_N, _ in chunks():
        high.add(scores_N)
    num_keep = min(count(high.total), high.total)
    nothing = Cut(
        num_scored=high.total, num_missing=high.num_nan, num_kept=0, descending=descending
    )
    if num_keep <= 0:
        return nothing
    high_digit, wanted = _locate(high.counts, num_keep)
    low = FloatHistogram(high_digit, descending=descending)
    for scores_N, _ in chunks():
        low.add(scores_N)
    low_digit, wanted = _locate(low.counts, wanted)
    key, tie_count = high_digit << 16 | low_digit, int(low.counts[low_digit])

    def tied() -> Iterator[NDArray[np.uint64]]:
        for scores_N, hash_N in chunks():
            is_scored = ~np.isnan(scores_N)
            keys = _directed(float_keys(scores_N[is_scored]), descending)
            yield hash_N[is_scored][keys == key]

    limit = (1 << 64) - 1 if wanted == tie_count else _hash_limit(tied, wanted)
    return replace(nothing, num_kept=num_keep, key=key, hash_limit=limit, tie_count=tie_count)


def find_budget_cut(
    chunks: Callable[[], Iterable[Weighted]], budget: int, *, descending: bool = False
) -> Cut:
    """Find the cut that keeps the first samples by (score, hash) whose weights fit a budget.

    The first sample that does not fit ends it; smaller ones behind it are not taken.

    Args:
        chunks: Starts a fresh walk: scores, hashes and whole, positive weights.
        budget: Most that the weights of the kept may add up to.
        descending: Begin with the largest scores.
    """

    def keyed() -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]]:
        for scores_N, hash_N, weight_N in chunks():
            is_scored = ~np.isnan(scores_N)
            keys = _directed(float_keys(scores_N[is_scored]), descending)
            yield keys.astype(np.uint64), hash_N[is_scored], weight_N[is_scored].astype(np.float64)

    num_scored = num_missing = 0
    for scores_N, _, _ in chunks():
        missing = int(np.isnan(scores_N).sum())
        num_missing += missing
        num_scored += len(scores_N) - missing
    nothing = Cut(num_scored=num_scored, num_missing=num_missing, num_kept=0, descending=descending)
    left = float(budget)
    # Six digits of sixteen bits: the key, then the hash. The first sample that does not fit has
    # these digits.
    found: list[int] = []
    for level in range(6):
        weights = np.zeros(_BINS)
        for key_N, hash_N, weight_N in keyed():
            matches = np.ones(len(key_N), dtype=bool)
            for place, digit in enumerate(found):
                matches &= _digit(key_N, hash_N, place) == digit
            digits = _digit(key_N[matches], hash_N[matches], level).astype(np.int64)
            weights += np.bincount(digits, weights=weight_N[matches], minlength=_BINS)
        cumulative = np.cumsum(weights)
        over = np.flatnonzero(cumulative > left)
        if not len(over):
            # Only at the first level: everything fits.
            return replace(
                nothing, num_kept=num_scored, key=(1 << 32) - 1, hash_limit=(1 << 64) - 1
            )
        digit = int(over[0])
        left -= float(cumulative[digit] - weights[digit])
        found.append(digit)
    key = found[0] << 16 | found[1]
    first_out = found[2] << 48 | found[3] << 32 | found[4] << 16 | found[5]
    if first_out:
        limited = replace(nothing, key=key, hash_limit=first_out - 1)
    else:
        limited = replace(nothing, key=key - 1, hash_limit=(1 << 64) - 1)
    kept = ties = 0
    for scores_N, hash_N, _ in chunks():
        kept += int(limited.mask(scores_N, hash_N).sum())
        keys = _directed(float_keys(scores_N), descending)
        ties += int(((keys == key) & ~np.isnan(scores_N)).sum())
    return replace(limited, num_kept=kept, tie_count=ties)


def _digit(key_N: NDArray[np.uint64], hash_N: NDArray[np.uint64], place: int) -> NDArray[np.uint64]:
    """Sixteen bits of key and hash in a row: places 0 and 1 are the key's, 2 to 5 the hash's."""
    whole, shift = (key_N, 16 - 16 * place) if place < 2 else (hash_N, 48 - 16 * (place - 2))
    digits: NDArray[np.uint64] = (whole >> np.uint64(shift)) & np.uint64(0xFFFF)
    return digits


def _hash_limit(tied: Callable[[], Iterable[NDArray[np.uint64]]], wanted: int) -> int:
    """Return the largest hash to keep so that exactly `wanted` of the tied hashes are kept."""
    prefix = 0
    for shift in (48, 32, 16, 0):
        counts = np.zeros(_BINS, dtype=np.int64)
        for hash_N in tied():
            # A shift by 64 is undefined, and the first digit has no prefix to match.
            matching = hash_N if shift == 48 else hash_N[hash_N >> np.uint64(shift + 16) == prefix]
            digits = (matching >> np.uint64(shift)) & np.uint64(0xFFFF)
            counts += np.bincount(digits.astype(np.int64), minlength=_BINS)
        digit, wanted = _locate(counts, wanted)
        prefix = prefix << 16 | digit
        if wanted == counts[digit]:
            return prefix << shift | (1 << shift) - 1
    raise DataError(
        "two samples on the cut have the same score and the same sample_id hash, so neither can be "
        "preferred: sample ids must be unique; look for a shard that is listed twice"
    )


def _locate(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th smallest value, and its rank within that bin."""
    cumulative = np.cumsum(counts)
    digit = int(np.searchsorted(cumulative, rank))
    return digit, rank - int(cumulative[digit] - counts[digit])


def _ordered_keys(
    values_N: NDArray[np.floating], descending: bool
) -> tuple[NDArray[np.uint32], int]:
    is_nan = np.isnan(values_N)
    num_nan = int(is_nan.sum())
    keys = float_keys(values_N[~is_nan] if num_nan else values_N)
    return _directed(keys, descending), num_nan


def _directed(keys: NDArray[np.uint32], descending: bool) -> NDArray[np.uint32]:
    return ~keys if descending else keys
