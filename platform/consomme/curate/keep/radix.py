"""Find the exact k-th smallest score of a stream (radix select) in constant memory.

Scores are ranked by the bits of their float32 value, sixteen at a time. A float32 maps to an
unsigned integer of the same order, so two counting passes of 65,536 bins each give the exact value
that a sort would give. Histograms of parts add up to the histogram of the whole, so neither order
nor partition of the input matters. Equal scores are ranked by a 64-bit hash of the sample id, again
sixteen bits at a time; those passes run only when the cut falls inside a group of equal scores.

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
"""A `Chunk` and the samples' weights."""


def float_keys(values_N: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Map float32 values to unsigned integers of the same order; -0.0 equals 0.0.

    NaN maps above +inf (or below -inf, by its sign bit); callers remove NaN first.
    """
    # Adding zero turns -0.0 into 0.0, so that the two tie.
    bits = (values_N.astype(np.float32) + np.float32(0.0)).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    return np.where(negative, ~bits, bits | np.uint32(1 << 31))


def key_value(key: int) -> float:
    """Return the float32 value that `float_keys` maps to `key`."""
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


class FloatHistogram:
    """Count float32 values by sixteen of their bits; add chunk by chunk, merge part by part.

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
        """Count values; NaN is counted separately."""
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
        """Return how many values were counted, without NaN."""
        return int(self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A cut in a ranked stream. `mask` applies it to any part of the stream independently."""

    num_scored: int
    """Samples with a score; NaN is not a score."""

    num_missing: int
    """Samples whose score is NaN: never kept."""

    num_kept: int
    """Exact number of samples on the kept side."""

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
        """Return True for each sample that is kept, whatever else is in the chunk."""
        if self.key < 0:
            return np.zeros(len(scores_N), dtype=bool)
        keys = _directed(float_keys(scores_N), self.descending)
        is_tie_kept = (keys == self.key) & (hash_N <= np.uint64(self.hash_limit))
        kept: NDArray[np.bool_] = ((keys < self.key) | is_tie_kept) & ~np.isnan(scores_N)
        return kept


def limit_cut(value: float, descending: bool) -> Cut:
    """Return the cut that keeps every score up to a value, or down to it if descending."""
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

    Only for finding neighbours of a cut: the order of samples with equal score and equal half-hash
    is undefined. NaN comes last in both directions.
    """
    keys = _directed(float_keys(scores_N), descending).astype(np.uint64)
    keys[np.isnan(scores_N)] = (1 << 32) - 1
    return keys << np.uint64(32) | hash_N >> np.uint64(32)


def find_cut(
    chunks: Callable[[], Iterable[Chunk]], count: Callable[[int], int], *, descending: bool = False
) -> Cut:
    """Find the cut that keeps the first samples by (score, hash).

    Args:
        chunks: Starts a new pass over all samples, in any order and any chunk size.
        count: How many to keep, given how many have a score.
        descending: Keep the largest scores instead of the smallest.

    Raises:
        DataError: Two samples with the same score and the same hash lie on the cut. The 64-bit
            hashes of a hundred million distinct ids collide with a probability of 3 in 10,000, and
            practically never on the cut, so the cause is a duplicate id.
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

    Selection ends at the first sample that does not fit; lighter ones after it are not taken.

    Args:
        chunks: Starts a new pass: scores, hashes and positive integer weights.
        budget: Maximum sum of the weights of the kept samples.
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
    remaining = float(budget)
    # Six digits of sixteen bits, of the key and then of the hash, of the first sample that does not
    # fit.
    prefix: list[int] = []
    for level in range(6):
        weights = np.zeros(_BINS)
        for key_N, hash_N, weight_N in keyed():
            matches = np.ones(len(key_N), dtype=bool)
            for place, digit in enumerate(prefix):
                matches &= _digit(key_N, hash_N, place) == digit
            digits = _digit(key_N[matches], hash_N[matches], level).astype(np.int64)
            weights += np.bincount(digits, weights=weight_N[matches], minlength=_BINS)
        cumulative = np.cumsum(weights)
        over = np.flatnonzero(cumulative > remaining)
        if not len(over):
            # Everything fits; this happens at the first level only.
            return replace(
                nothing, num_kept=num_scored, key=(1 << 32) - 1, hash_limit=(1 << 64) - 1
            )
        digit = int(over[0])
        remaining -= float(cumulative[digit] - weights[digit])
        prefix.append(digit)
    key = prefix[0] << 16 | prefix[1]
    first_out = prefix[2] << 48 | prefix[3] << 32 | prefix[4] << 16 | prefix[5]
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
    """Return one 16-bit digit: places 0 and 1 are of the key, 2 to 5 of the hash."""
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
