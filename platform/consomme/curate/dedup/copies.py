"""Find duplicate pictures and keep the best of each: exact duplicates by bytes, near ones by looks.

Near duplicates have near hashes, and the comparison of their thumbnails confirms them. Hashes alone
decide nothing: of 1,500 different radiographs, a third has a hash like that of another.

Near duplicates form stars, not connected components. From the best sample to the worst, a sample is
kept unless it is near one that is kept already; it is then a duplicate of the nearest such sample
(greedy star clustering). So a dropped sample was compared with its representative itself, and no
two kept samples are near duplicates. Connected components (a is near b, b is
near c, so all are one) join pictures that nobody would call duplicates: of 1,914 Twemoji at
distance 5, by their hashes alone, the largest component holds 115 whose hashes differ in up to 24
bits; the largest star holds 18.

Near pairs are found exactly and without comparing all pairs. The 64 bits are split into blocks; two
hashes that differ in at most `d` bits agree on all but `d` blocks (pigeonhole), so they meet in one
of the hash tables that each leave out one choice of `d` blocks. Tables are processed one at a time,
so memory does not grow with their number. A sample that has found a better neighbour is not
compared again, so a million placeholders that look the same cost no more than any other million.
Different pictures with near hashes are all compared, but coarsely first: see `CopyCheck`.

Samples are numbered by rank in this file: 0 is the best. The result depends only on that order and
on the samples' looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.confirmation import CopyCheck, ThumbnailTable
from consomme.curate.dedup.hash_tables import (
    CHUNK,
    HashTable,
    Index,
    Words,
    block_masks,
    first_masks,
)
from consomme.curate.dedup.phash import colour_gap

# Shapes: N samples by rank, S variants (the picture; its mirror image), C columns, P pairs,
# Q query entries whose neighbours are searched among B. An entry is one variant of one sample, with
# the number `sample * S + variant`.
MAX_DISTANCE = 12
"""Beyond this distance, unrelated pictures of a data set of millions match by chance."""

_NONE = np.uint64(2**64 - 1)
_LOW = np.uint64(2**32 - 1)
_HIGH = np.uint64(32)
_LINEAR_PROBES = 3
_MAX_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class NearDuplicateLimits:
    """Two pictures may be near duplicates if both limits hold; their thumbnails decide."""

    max_distance: int
    """Maximum Hamming distance of their perceptual hashes, in bits."""

    max_colour: int = 255
    """Maximum difference of the mean colours of their quarters; 255 ignores colours."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """The sample that represents each sample."""

    representative_N: Index  # noqa: N815
    """Number of the kept sample that stands for this one; its own number if it is kept."""

    distance_N: NDArray[np.uint8]  # noqa: N815
    """Hamming distance to the representative's perceptual hash; 0 for equal bytes."""

    is_exact_N: NDArray[np.bool_]  # noqa: N815
    """True for a dropped sample with the same bytes as its representative."""

    difference_N: NDArray[np.float32]  # noqa: N815
    """Difference from the representative's thumbnail, at most 1; 0 for equal bytes."""

    @property
    def is_kept_N(self) -> NDArray[np.bool_]:  # noqa: N802
        """True for samples that are kept."""
        is_kept: NDArray[np.bool_] = self.representative_N == np.arange(len(self.representative_N))
        return is_kept


def find_duplicates(
    content_NC: Words,
    hash_NS: Words,
    colour_NS: Words,
    is_flat_N: NDArray[np.bool_],
    limits: NearDuplicateLimits | None,
    thumbnails: Callable[[Index], ThumbnailTable],
) -> Duplicates:
    """Find the duplicates among samples in order of rank, best first.

    Args:
        content_NC: Hash of each picture's bytes, in any number of columns.
        hash_NS: Perceptual hashes of the picture and, if mirror images count as duplicates, of its
            mirror image. The distance of two samples is the smallest between their variants.
        colour_NS: Colours of the same variants.
        is_flat_N: Pictures without a meaningful perceptual hash: only equal bytes are duplicates.
        limits: When pictures may be near duplicates; None: only equal bytes are duplicates.
        thumbnails: Opens the thumbnails of samples (ascending), which are those whose hashes are
            near another's. Not called without limits.
    """
    same_N = first_of_equal(content_NC)
    is_first_N = same_N == np.arange(len(same_N))
    representative_N = same_N.copy()
    distance_N = np.zeros(len(representative_N), dtype=np.uint8)
    difference_N = np.zeros(len(representative_N), dtype=np.float32)
    if limits is not None:
        compared = np.flatnonzero(is_first_N & ~is_flat_N)
        hashes, colours = hash_NS[compared], colour_NS[compared]
        near = near_samples(hashes, colours, limits)
        compared, hashes, colours = compared[near], hashes[near], colours[near]
        check = CopyCheck(thumbnails(compared))
        center, distance_N[compared] = star_clusters(hashes, colours, limits, check)
        representative_N[compared] = compared[center]
        difference_N[compared] = check.smallest_difference(
            np.arange(len(center)), center, is_mirrored=hash_NS.shape[1] > 1
        )
        representative_N = representative_N[same_N]
        distance_N, difference_N = distance_N[same_N], difference_N[same_N]
    is_exact_N = (representative_N == same_N) & ~is_first_N
    return Duplicates(
        representative_N=representative_N,
        distance_N=distance_N,
        is_exact_N=is_exact_N,
        difference_N=difference_N,
    )


def rank_order(
    score_N: NDArray[np.floating] | None,
    pixels_N: NDArray[np.integer],
    num_bytes_N: NDArray[np.integer],
    id_hash_N: Words,
) -> Index:
    """Return the samples' indices from best to worst, the order that `find_duplicates` expects.

    Higher scores come first, samples without one (NaN) last; then more pixels, then more bytes,
    then a smaller hash of the sample's id; finally, the given order.
    """
    worse_N = np.zeros(len(pixels_N), dtype=np.uint64)
    if score_N is not None:
        # Order-preserving bits of float32 scores: two sort keys suffice instead of four.
        value_N = score_N.astype(np.float32) + np.float32(0.0)
        bits = value_N.view(np.uint32)
        rising = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
        worse_N = np.where(np.isnan(value_N), _LOW, _LOW - rising.astype(np.uint64))
    smaller_N = _LOW - np.minimum(pixels_N.astype(np.uint64), _LOW)
    lighter_N = _LOW - np.minimum(num_bytes_N.astype(np.uint64), _LOW)
    keys = (lighter_N << _HIGH | id_hash_N >> _HIGH, worse_N << _HIGH | smaller_N)
    order_N: Index = np.lexsort(keys)
    return order_N


def first_of_equal(row_NC: Words) -> Index:
    """Return for each row the index of the first row that equals it."""
    first_N = np.arange(len(row_NC))
    table = HashTable(len(row_NC))
    mixed_N = np.zeros(len(row_NC), dtype=np.uint64)
    for column_N in row_NC.T:
        mixed_N = mixed_N * np.uint64(0x9E3779B97F4A7C15) + column_N
    slot_N = table.slots(mixed_N, _NONE)
    later, _ = table.later(slot_N, first_N)
    candidates = table.in_slots(slot_N, first_N, slot_N[later])
    order = candidates[np.lexsort(row_NC[candidates].T)]
    rows = row_NC[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    starts = np.flatnonzero(is_new)
    # The sort is stable: of equal rows, the first comes first.
    first_N[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return first_N


def near_samples(hash_NS: Words, colour_NS: Words, limits: NearDuplicateLimits) -> Index:
    """Return the samples that may have a near one, ascending; the others need no thumbnail.

    Of slots with more than `_MAX_STEPS` entries, which is where pairs would be too many to
    enumerate, all samples are returned.
    """
    variants = _HashVariants(hash_NS, colour_NS, limits)
    entry_E = np.arange(hash_NS.size)
    is_near_N = np.zeros(len(hash_NS), dtype=bool)
    table = HashTable(len(entry_E))

    def mark(one: Index, better: Index) -> None:
        is_near = variants.is_near(one, better)
        is_near_N[one[is_near] // variants.num] = True
        is_near_N[better[is_near] // variants.num] = True

    for mask in block_masks(len(entry_E), limits.max_distance):
        slot_E = table.slots(variants.hashes, mask)
        later, first = table.later(slot_E, entry_E)
        mark(later, first)
        full = table.in_slots(slot_E, later, slot_E[table.later(slot_E, later)[0]])
        full = full[np.argsort(slot_E[full], kind="stable")]
        place = np.arange(len(full))
        for step in range(1, _MAX_STEPS + 1):
            place = place[place >= step]
            place = place[slot_E[full[place]] == slot_E[full[place - step]]]
            mark(full[place], full[place - step])
        if place.size:
            is_near_N[table.in_slots(slot_E, entry_E, slot_E[full[place]]) // variants.num] = True
    return np.flatnonzero(is_near_N)


def star_clusters(
    hash_NS: Words,
    colour_NS: Words,
    limits: NearDuplicateLimits,
    check: CopyCheck | None = None,
) -> tuple[Index, NDArray[np.uint8]]:
    """Assign samples to stars around the best of them; see the module docstring.

    Args:
        hash_NS: As for `find_duplicates`.
        colour_NS: As for `find_duplicates`.
        limits: When two samples may be near.
        check: Confirms that they are. None: by their hashes alone, to measure hashes. Then samples
            with equal hashes and colours are assigned as the best of them is.

    Returns:
        center_N: Number of the sample in the center of each sample's star.
        distance_N: Hamming distance between the two.
    """
    first_N = np.arange(len(hash_NS))
    if check is None:
        first_N = first_of_equal(np.concatenate([hash_NS, colour_NS], axis=1))
    chosen = np.flatnonzero(first_N == np.arange(len(first_N)))
    variants = _HashVariants(hash_NS[chosen], colour_NS[chosen], limits, check)
    nearest_M = _assign_centers(variants, len(chosen))
    is_center = nearest_M == _NONE
    center_M = np.where(is_center, np.arange(len(nearest_M)), (nearest_M & _LOW).astype(np.int64))
    distance_M = np.where(is_center, 0, nearest_M >> _HIGH).astype(np.uint8)
    member_N = np.searchsorted(chosen, first_N)
    return chosen[center_M[member_N]], distance_M[member_N]


class _HashVariants:
    """The entries of all samples, and the test whether two of them are near."""

    def __init__(
        self,
        hash_NS: Words,
        colour_NS: Words,
        limits: NearDuplicateLimits,
        check: CopyCheck | None = None,
    ) -> None:
        self.num = hash_NS.shape[1]
        self.hashes = hash_NS.reshape(-1)
        self.colours = colour_NS.reshape(-1)
        self.limits = limits
        self.check = check

    def of(self, samples: Index) -> Index:
        """Return the entries of samples."""
        entries: Index = (samples[:, None] * self.num + np.arange(self.num)).reshape(-1)
        return entries

    def distance(self, one: Index, other: Index) -> NDArray[np.uint8]:
        """Return the Hamming distance of entries, pair by pair."""
        bits: NDArray[np.uint8] = np.bitwise_count(self.hashes[one] ^ self.hashes[other])
        return bits

    def is_near(self, one: Index, better: Index) -> NDArray[np.bool_]:
        """Whether each entry is near the paired entry of a better sample."""
        is_near = self.distance(one, better) <= self.limits.max_distance
        is_near &= one // self.num > better // self.num
        if self.limits.max_colour < 255:
            (pair,) = np.nonzero(is_near)
            gap = colour_gap(self.colours[one[pair]], self.colours[better[pair]])
            is_near[pair] = gap <= self.limits.max_colour
        return is_near

    def is_copy(
        self, one: Index, better: Index, first_mask: Callable[[Words], Index], number: int
    ) -> NDArray[np.bool_]:
        """Whether each entry is a confirmed copy of the paired entry of a better sample.

        A pair that meets in several tables is tested in the first of them only.
        """
        is_copy = self.is_near(one, better)
        if self.check is None:
            return is_copy
        (pair,) = np.nonzero(is_copy)
        here = first_mask(self.hashes[one[pair]] ^ self.hashes[better[pair]]) == number
        is_copy[pair] = here
        pair = pair[here]
        is_mirrored = one[pair] % self.num != better[pair] % self.num
        is_copy[pair] = self.check.is_copy(
            one[pair] // self.num, better[pair] // self.num, is_mirrored
        )
        return is_copy


def _assign_centers(variants: _HashVariants, num_samples: int) -> Words:
    """Return `distance << 32 | number` of each sample's center; `_NONE` for centers.

    In each round the undecided samples without a better undecided neighbour become centers, and
    their neighbours are assigned. There are as many rounds as the longest chain of ever better
    neighbours has samples, which is few.
    """
    nearest_N = np.full(num_samples, _NONE)
    undecided = np.arange(num_samples)
    members = undecided[:0]
    while undecided.size:
        has_better = _has_better_neighbour(variants, undecided)
        centers, rest = undecided[~has_better], undecided[has_better]
        # Members of earlier centers as well: a new center may be nearer.
        unassigned = np.concatenate([members, rest])
        nearest_N[unassigned] = np.minimum(
            nearest_N[unassigned], _nearest_better_neighbour(variants, unassigned, centers)
        )
        is_found = nearest_N[rest] != _NONE
        members, undecided = np.concatenate([members, rest[is_found]]), rest[~is_found]
    return nearest_N


def _has_better_neighbour(variants: _HashVariants, samples: Index) -> NDArray[np.bool_]:
    """Whether each of the samples (ascending) has a better one of them as a neighbour."""
    entry_E = variants.of(samples)
    hash_E = variants.hashes[entry_E]
    is_done_N = np.zeros(len(samples), dtype=bool)
    table = HashTable(len(entry_E))
    all_rows = np.arange(len(entry_E))

    first_mask = first_masks(len(entry_E), variants.limits.max_distance)

    def compare(one: Index, better: Index, number: int) -> NDArray[np.bool_]:
        is_near = variants.is_copy(entry_E[one], entry_E[better], first_mask, number)
        is_done_N[one[is_near] // variants.num] = True
        return is_near

    for number, mask in enumerate(block_masks(len(entry_E), variants.limits.max_distance)):
        slot_E = table.slots(hash_E, mask)
        rest = all_rows
        # Most slots hold few entries: compare with the first of a slot, then with the second, …
        for _ in range(_LINEAR_PROBES):
            rest, better = table.later(slot_E, rest)
            is_open = ~is_done_N[rest // variants.num]
            compare(rest[is_open], better[is_open], number)
        # … and in the few full slots with all earlier entries, the closest first.
        is_open = ~is_done_N[rest // variants.num]
        full = table.in_slots(slot_E, rest, slot_E[rest[is_open]])
        full = full[np.argsort(slot_E[full], kind="stable")]
        place = np.flatnonzero(~is_done_N[full // variants.num])
        step = 0
        while place.size:
            step += 1
            place = place[place >= step]
            place = place[slot_E[full[place]] == slot_E[full[place - step]]]
            place = place[~compare(full[place], full[place - step], number)]
    return is_done_N


def _nearest_better_neighbour(variants: _HashVariants, queries: Index, among: Index) -> Words:
    """Find for each query sample its nearest better neighbour among others; of equals, the best.

    Returns:
        `distance << 32 | number`, aligned with `queries`; `_NONE` where none is near.
    """
    nearest_N = np.full(len(queries), _NONE)
    if not len(queries):
        return nearest_N
    entry_Q, entry_B = variants.of(queries), variants.of(among)
    hash_Q, hash_B = variants.hashes[entry_Q], variants.hashes[entry_B]
    table = HashTable(max(len(entry_Q), len(entry_B)))
    size, max_distance = len(entry_Q) + len(entry_B), variants.limits.max_distance
    first_mask = first_masks(size, max_distance)
    for number, mask in enumerate(block_masks(size, max_distance)):
        slot_Q, slot_B = table.slots(hash_Q, mask), table.slots(hash_B, mask)
        query_rows, other_rows = np.arange(len(slot_Q)), np.arange(len(slot_B))
        if len(query_rows) < len(other_rows):
            other_rows = table.in_slots(slot_B, other_rows, slot_Q)
        else:
            query_rows = table.in_slots(slot_Q, query_rows, slot_B)
        other_rows = other_rows[np.argsort(slot_B[other_rows], kind="stable")]
        begin = np.searchsorted(slot_B[other_rows], slot_Q[query_rows], side="left")
        end = np.searchsorted(slot_B[other_rows], slot_Q[query_rows], side="right")
        for one, place in _pairs(begin, end):
            query, other = query_rows[one], other_rows[place]
            is_near = variants.is_copy(entry_Q[query], entry_B[other], first_mask, number)
            query, other = query[is_near], other[is_near]
            distance = variants.distance(entry_Q[query], entry_B[other]).astype(np.uint64)
            center = among[other // variants.num].astype(np.uint64)
            np.minimum.at(nearest_N, query // variants.num, distance << _HIGH | center)
    return nearest_N


def _pairs(begin_Q: Index, end_Q: Index) -> Iterator[tuple[Index, Index]]:
    """Yield the pairs of each row with the positions from its begin to its end, in chunks."""
    last_Q = np.cumsum(end_Q - begin_Q)
    total = int(last_Q[-1]) if len(last_Q) else 0
    for first in range(0, total, CHUNK):
        pair_P = np.arange(first, min(total, first + CHUNK))
        row_P = np.searchsorted(last_Q, pair_P, side="right")
        yield row_P, end_Q[row_P] - (last_Q[row_P] - pair_P)
