"""Which copies of a picture stay: the best of all with the same bytes, and of all that look alike.

One decision is made here: near copies form stars, not chains. Going from the best sample to the
worst, a sample stays unless it is near one that stays already; it is then a copy of the nearest
such one. So whatever is dropped differs from what stays for it in at most `max_distance` bits, and
no two that stay are that near. With chains (a is near b, b is near c, so all are one) pictures that
nobody would call copies end up together: of 1,914 Twemoji at distance 4, by their hashes alone, the
longest chain holds 87 whose hashes differ in up to 22 bits; the largest star holds 18.

Near pairs are found exactly and without comparing everything. The 64 bits are cut into blocks; two
hashes that differ in at most `d` bits agree on all but `d` blocks (pigeonhole), so they meet in one
of the tables that leave out each choice of `d` blocks. One table is looked through at a time, so
memory does not grow with their number. Equal looks are made one before, and a sample that has found
a better neighbour looks no further, so a million placeholders cost no more than any other million.

Samples are numbered by rank everywhere in this file: 0 is the best. The result depends on nothing
but that order and what the samples look like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.hash_tables import PIECE, HashTable, Index, Words, block_masks
from consomme.curate.dedup.phash import colour_gap

# Shapes: N samples by rank, S sides (the picture; its mirror image), C columns, P pairs,
# Q entries of which neighbours are sought among B. An entry is one side of one sample: number
# `sample * S + side`.
MAX_DISTANCE = 12
"""Beyond, any two pictures of a data set of millions may meet by chance."""

_NONE = np.uint64(2**64 - 1)
_LOW = np.uint64(2**32 - 1)
_HIGH = np.uint64(32)
_PEELED = 3


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """When two pictures are near copies: when both hold."""

    max_distance: int
    """Most bits in which their perceptual hashes differ."""

    max_colour: int = 255
    """Most that the mean colours of their quarters differ by; 255 does not look at colours."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Whose copy each sample is."""

    kept_N: Index  # noqa: N815
    """Number of the sample that stays for this one: its own if it stays itself."""

    distance_N: NDArray[np.uint8]  # noqa: N815
    """Bits in which its perceptual hash differs from that one's; 0 for equal bytes."""

    is_exact_N: NDArray[np.bool_]  # noqa: N815
    """Dropped, with the same bytes as the one that stays."""

    @property
    def stays_N(self) -> NDArray[np.bool_]:  # noqa: N802
        """Tell who stays."""
        stays: NDArray[np.bool_] = self.kept_N == np.arange(len(self.kept_N))
        return stays


def find_copies(
    content_NC: Words,
    hash_NS: Words,
    colour_NS: Words,
    is_flat_N: NDArray[np.bool_],
    nearness: Nearness | None,
) -> Copies:
    """Find the copies among samples that come best first.

    Args:
        content_NC: Hash of each picture's bytes, in any number of columns.
        hash_NS: Perceptual hashes of the picture and, if mirror images are copies, of its mirror
            image. Two samples are as near as the nearest of their sides.
        colour_NS: Colours of the same.
        is_flat_N: Pictures whose perceptual hash means nothing: only equal bytes are copies.
        nearness: When pictures are near copies; None: only equal bytes are copies.
    """
    same_N = first_of_equal(content_NC)
    is_first_N = same_N == np.arange(len(same_N))
    kept_N = same_N.copy()
    distance_N = np.zeros(len(kept_N), dtype=np.uint8)
    if nearness is not None:
        looked_at = np.flatnonzero(is_first_N & ~is_flat_N)
        star, distance = stars(hash_NS[looked_at], colour_NS[looked_at], nearness)
        kept_N[looked_at], distance_N[looked_at] = looked_at[star], distance
        kept_N, distance_N = kept_N[same_N], distance_N[same_N]
    is_exact_N = (kept_N == same_N) & ~is_first_N
    return Copies(kept_N=kept_N, distance_N=distance_N, is_exact_N=is_exact_N)


def rank_order(
    score_N: NDArray[np.floating] | None,
    pixels_N: NDArray[np.integer],
    num_bytes_N: NDArray[np.integer],
    id_hash_N: Words,
) -> Index:
    """List samples from best to worst, which is the order that `find_copies` wants.

    Higher scores come first, samples without one (NaN) last; then more pixels, then more bytes,
    then a smaller hash of the sample's id; at last, the order given.
    """
    worse_N = np.zeros(len(pixels_N), dtype=np.uint64)
    if score_N is not None:
        # The bits of float32 scores, turned so that they rise: two keys to sort by, not four.
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
    """Return for each row the number of the first row that equals it."""
    first_N = np.arange(len(row_NC))
    table = HashTable(len(row_NC))
    mixed_N = np.zeros(len(row_NC), dtype=np.uint64)
    for column_N in row_NC.T:
        mixed_N = mixed_N * np.uint64(0x9E3779B97F4A7C15) + column_N
    slot_N = table.slots(mixed_N, _NONE)
    later, _ = table.later(slot_N, first_N)
    met = table.in_slots(slot_N, first_N, slot_N[later])
    order = met[np.lexsort(row_NC[met].T)]
    rows = row_NC[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    starts = np.flatnonzero(is_new)
    # The sort is stable: of equal rows, the first comes first.
    first_N[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return first_N


def stars(hash_NS: Words, colour_NS: Words, nearness: Nearness) -> tuple[Index, NDArray[np.uint8]]:
    """Put samples into stars around the best of them; see the module.

    Samples that look exactly the same share the fate of the best of them.

    Returns:
        middle_N: Number of the sample in the middle of each one's star.
        distance_N: Bits between the two.
    """
    first_N = first_of_equal(np.concatenate([hash_NS, colour_NS], axis=1))
    chosen = np.flatnonzero(first_N == np.arange(len(first_N)))
    looks = _Sides(hash_NS[chosen], colour_NS[chosen], nearness)
    found_M = _decide(looks, len(chosen))
    is_middle = found_M == _NONE
    middle_M = np.where(is_middle, np.arange(len(found_M)), (found_M & _LOW).astype(np.int64))
    distance_M = np.where(is_middle, 0, found_M >> _HIGH).astype(np.uint8)
    member_N = np.searchsorted(chosen, first_N)
    return chosen[middle_M[member_N]], distance_M[member_N]


class _Sides:
    """The entries of all samples, and when two of them are near."""

    def __init__(self, hash_NS: Words, colour_NS: Words, nearness: Nearness) -> None:
        self.num = hash_NS.shape[1]
        self.hashes = hash_NS.reshape(-1)
        self.colours = colour_NS.reshape(-1)
        self.nearness = nearness

    def of(self, samples: Index) -> Index:
        """List the entries of some samples."""
        entries: Index = (samples[:, None] * self.num + np.arange(self.num)).reshape(-1)
        return entries

    def distance(self, one: Index, other: Index) -> NDArray[np.uint8]:
        """Count the bits between entries, pair by pair."""
        bits: NDArray[np.uint8] = np.bitwise_count(self.hashes[one] ^ self.hashes[other])
        return bits

    def is_near(self, one: Index, better: Index) -> NDArray[np.bool_]:
        """Tell which entries are near one of a better sample, pair by pair."""
        is_near = self.distance(one, better) <= self.nearness.max_distance
        is_near &= one // self.num > better // self.num
        if self.nearness.max_colour < 255:
            (pair,) = np.nonzero(is_near)
            gap = colour_gap(self.colours[one[pair]], self.colours[better[pair]])
            is_near[pair] = gap <= self.nearness.max_colour
        return is_near


def _decide(looks: _Sides, num_samples: int) -> Words:
    """Return `distance << 32 | number` of each sample's middle; `_NONE` for middles.

    In each round the undecided samples that have no better undecided neighbour become middles, and
    their neighbours are decided. The rounds are few: as many as a chain of ever better neighbours
    is long.
    """
    found_N = np.full(num_samples, _NONE)
    undecided = np.arange(num_samples)
    members = undecided[:0]
    while undecided.size:
        has_better = _has_better(looks, undecided)
        middles, rest = undecided[~has_better], undecided[has_better]
        # Members of earlier middles too: a new one may be nearer.
        waiting = np.concatenate([members, rest])
        found_N[waiting] = np.minimum(found_N[waiting], _nearest_better(looks, waiting, middles))
        is_found = found_N[rest] != _NONE
        members, undecided = np.concatenate([members, rest[is_found]]), rest[~is_found]
    return found_N


def _has_better(looks: _Sides, samples: Index) -> NDArray[np.bool_]:
    """Tell which of some samples (rising) have a better one of them near."""
    entry_E = looks.of(samples)
    hash_E = looks.hashes[entry_E]
    is_done_N = np.zeros(len(samples), dtype=bool)
    table = HashTable(len(entry_E))
    every = np.arange(len(entry_E))

    def seek(one: Index, better: Index) -> NDArray[np.bool_]:
        is_near = looks.is_near(entry_E[one], entry_E[better])
        is_done_N[one[is_near] // looks.num] = True
        return is_near

    for mask in block_masks(len(entry_E), looks.nearness.max_distance):
        slot_E = table.slots(hash_E, mask)
        rest = every
        # Most slots hold few: compare with the first of a slot, then with the second, …
        for _ in range(_PEELED):
            rest, better = table.later(slot_E, rest)
            is_open = ~is_done_N[rest // looks.num]
            seek(rest[is_open], better[is_open])
        # … and within the few full ones with all others, those next before oneself first.
        is_open = ~is_done_N[rest // looks.num]
        full = table.in_slots(slot_E, rest, slot_E[rest[is_open]])
        full = full[np.argsort(slot_E[full], kind="stable")]
        place = np.flatnonzero(~is_done_N[full // looks.num])
        step = 0
        while place.size:
            step += 1
            place = place[place >= step]
            place = place[slot_E[full[place]] == slot_E[full[place - step]]]
            place = place[~seek(full[place], full[place - step])]
    return is_done_N


def _nearest_better(looks: _Sides, sought: Index, among: Index) -> Words:
    """Find for each sample sought the nearest better one among others; of equally near, the best.

    Returns:
        `distance << 32 | number`, aligned with `sought`; `_NONE` where none is near.
    """
    found_N = np.full(len(sought), _NONE)
    if not len(sought):
        return found_N
    entry_Q, entry_B = looks.of(sought), looks.of(among)
    hash_Q, hash_B = looks.hashes[entry_Q], looks.hashes[entry_B]
    table = HashTable(max(len(entry_Q), len(entry_B)))
    for mask in block_masks(len(entry_Q) + len(entry_B), looks.nearness.max_distance):
        slot_Q, slot_B = table.slots(hash_Q, mask), table.slots(hash_B, mask)
        asking, asked = np.arange(len(slot_Q)), np.arange(len(slot_B))
        if len(asking) < len(asked):
            asked = table.in_slots(slot_B, asked, slot_Q)
        else:
            asking = table.in_slots(slot_Q, asking, slot_B)
        asked = asked[np.argsort(slot_B[asked], kind="stable")]
        begin = np.searchsorted(slot_B[asked], slot_Q[asking], side="left")
        end = np.searchsorted(slot_B[asked], slot_Q[asking], side="right")
        for one, place in _pairs(begin, end):
            query, other = asking[one], asked[place]
            is_near = looks.is_near(entry_Q[query], entry_B[other])
            query, other = query[is_near], other[is_near]
            distance = looks.distance(entry_Q[query], entry_B[other]).astype(np.uint64)
            number = among[other // looks.num].astype(np.uint64)
            np.minimum.at(found_N, query // looks.num, distance << _HIGH | number)
    return found_N


def _pairs(begin_Q: Index, end_Q: Index) -> Iterator[tuple[Index, Index]]:
    """Yield the pairs of each row with the places from its begin to its end, many at a time."""
    last_Q = np.cumsum(end_Q - begin_Q)
    total = int(last_Q[-1]) if len(last_Q) else 0
    for first in range(0, total, PIECE):
        pair_P = np.arange(first, min(total, first + PIECE))
        row_P = np.searchsorted(last_Q, pair_P, side="right")
        yield row_P, end_Q[row_P] - (last_Q[row_P] - pair_P)
