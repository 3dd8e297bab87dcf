"""Find duplicate pictures and keep the best of each: exact duplicates by bytes, near ones by hash.

Near duplicates form stars, not connected components. From the best sample to the worst, a sample is
kept unless it is near one that is kept already; it is then a duplicate of the nearest such sample
(greedy star clustering). So a dropped sample differs from its representative in at most
`max_distance` bits, and no two kept samples are that near. Connected components (a is near b, b is
near c, so all are one) join pictures that nobody would call duplicates: of 1,914 Twemoji at
distance 4, by their hashes alone, the largest component holds 87 whose hashes differ in up to 22
bits; the largest star holds 18.

Near pairs are found exactly and without comparing all pairs. The 64 bits are split into blocks; two
hashes that differ in at most `d` bits agree on all but `d` blocks (pigeonhole), so they meet in one
of the hash tables that each leave out one choice of `d` blocks. Tables are processed one at a time,
so memory does not grow with their number. Samples with equal hashes and colours are merged before,
and a sample that has found a better neighbour is not compared again, so a million identical
placeholders cost no more than any other million.

Samples are numbered by rank in this file: 0 is the best. The result depends only on that order and
on the samples' hashes and colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.hash_tables import CHUNK, HashTable, Index, Words, block_masks
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


@dataclass(frozen=True, kw_only=True)
class NearDuplicateLimits:
    """Two pictures are near duplicates if both limits hold."""

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
) -> Duplicates:
    """Find the duplicates among samples in order of rank, best first.

    Args:
        content_NC: Hash of each picture's bytes, in any number of columns.
        hash_NS: Perceptual hashes of the picture and, if mirror images count as duplicates, of its
            mirror image. The distance of two samples is the smallest between their variants.
        colour_NS: Colours of the same variants.
        is_flat_N: Pictures without a meaningful perceptual hash: only equal bytes are duplicates.
        limits: When pictures are near duplicates; None: only equal bytes are duplicates.
    """
    same_N = first_of_equal(content_NC)
    is_first_N = same_N == np.arange(len(same_N))
    representative_N = same_N.copy()
    distance_N = np.zeros(len(representative_N), dtype=np.uint8)
    if limits is not None:
        compared = np.flatnonzero(is_first_N & ~is_flat_N)
        center, distance = star_clusters(hash_NS[compared], colour_NS[compared], limits)
        representative_N[compared], distance_N[compared] = compared[center], distance
        representative_N, distance_N = representative_N[same_N], distance_N[same_N]
    is_exact_N = (representative_N == same_N) & ~is_first_N
    return Duplicates(
        representative_N=representative_N, distance_N=distance_N, is_exact_N=is_exact_N
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


def star_clusters(
    hash_NS: Words, colour_NS: Words, limits: NearDuplicateLimits
) -> tuple[Index, NDArray[np.uint8]]:
    """Assign samples to stars around the best of them; see the module docstring.

    Samples with equal hashes and colours are assigned as the best of them is.

    Returns:
        center_N: Number of the sample in the center of each sample's star.
        distance_N: Hamming distance between the two.
    """
    first_N = first_of_equal(np.concatenate([hash_NS, colour_NS], axis=1))
    chosen = np.flatnonzero(first_N == np.arange(len(first_N)))
    variants = _HashVariants(hash_NS[chosen], colour_NS[chosen], limits)
    nearest_M = _assign_centers(variants, len(chosen))
    is_center = nearest_M == _NONE
    center_M = np.where(is_center, np.arange(len(nearest_M)), (nearest_M & _LOW).astype(np.int64))
    distance_M = np.where(is_center, 0, nearest_M >> _HIGH).astype(np.uint8)
    member_N = np.searchsorted(chosen, first_N)
    return chosen[center_M[member_N]], distance_M[member_N]


class _HashVariants:
    """The entries of all samples, and the test whether two of them are near."""

    def __init__(self, hash_NS: Words, colour_NS: Words, limits: NearDuplicateLimits) -> None:
        self.num = hash_NS.shape[1]
        self.hashes = hash_NS.reshape(-1)
        self.colours = colour_NS.reshape(-1)
        self.limits = limits

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

    def compare(one: Index, better: Index) -> NDArray[np.bool_]:
        is_near = variants.is_near(entry_E[one], entry_E[better])
        is_done_N[one[is_near] // variants.num] = True
        return is_near

    for mask in block_masks(len(entry_E), variants.limits.max_distance):
        slot_E = table.slots(hash_E, mask)
        rest = all_rows
        # Most slots hold few entries: compare with the first of a slot, then with the second, …
        for _ in range(_LINEAR_PROBES):
            rest, better = table.later(slot_E, rest)
            is_open = ~is_done_N[rest // variants.num]
            compare(rest[is_open], better[is_open])
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
            place = place[~compare(full[place], full[place - step])]
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
    for mask in block_masks(len(entry_Q) + len(entry_B), variants.limits.max_distance):
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
            is_near = variants.is_near(entry_Q[query], entry_B[other])
            query, other = query[is_near], other[is_near]
            distance = variants.distance(entry_Q[query], entry_B[other]).astype(np.uint64)
            number = among[other // variants.num].astype(np.uint64)
            np.minimum.at(nearest_N, query // variants.num, distance << _HIGH | number)
    return nearest_N


def _pairs(begin_Q: Index, end_Q: Index) -> Iterator[tuple[Index, Index]]:
    """Yield the pairs of each row with the positions from its begin to its end, in chunks."""
    last_Q = np.cumsum(end_Q - begin_Q)
    total = int(last_Q[-1]) if len(last_Q) else 0
    for first in range(0, total, CHUNK):
        pair_P = np.arange(first, min(total, first + CHUNK))
        row_P = np.searchsorted(last_Q, pair_P, side="right")
        yield row_P, end_Q[row_P] - (last_Q[row_P] - pair_P)
