"""Hash tables that find hashes which agree on a subset of their bits.

A table is an array of slots that is filled by scattering, without sorting. Different bits may share
a slot, so entries of one slot have to be compared. The arrays are allocated once and reused for all
choices of bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

# Shapes: E hashes.
Index = NDArray[np.int64]
Words = NDArray[np.uint64]
Slots = NDArray[np.uint32]

CHUNK = 1 << 20
"""Rows or pairs processed at a time, which bounds intermediate arrays."""

_MAX_BITS = 26
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LOOK_UP, _COMPARE = 100.0, 40.0
"""Measured nanoseconds per hash and table, and per comparison of a chance collision."""


class HashTable:
    """Look up hashes by a subset of their bits.

    Args:
        num_hashes: Maximum number of hashes; at most a quarter of the slots is used.
    """

    def __init__(self, num_hashes: int) -> None:
        self.num_bits = min(_MAX_BITS, max(8, num_hashes.bit_length() + 2))
        self._first = np.zeros(1 << self.num_bits, dtype=np.uint32)
        self._marked = np.zeros(1 << self.num_bits, dtype=bool)

    def slots(self, hash_E: Words, mask: np.uint64) -> Slots:
        """Return a slot for each hash; hashes that agree on the mask's bits share a slot."""
        slot_E = np.empty(len(hash_E), dtype=np.uint32)
        shift = np.uint64(64 - self.num_bits)
        for at in range(0, len(hash_E), CHUNK):
            slot_E[at : at + CHUNK] = ((hash_E[at : at + CHUNK] & mask) * _ODD) >> shift
        return slot_E

    def later(self, slot_E: Slots, rows: Index) -> tuple[Index, Index]:
        """Return the rows (ascending) that are not the first in their slot.

        Returns:
            The rows, and for each the first row of its slot.
        """
        chunks = _chunks(rows)
        for chunk in reversed(chunks):
            # Of several assignments to one slot, the last one remains.
            self._first[slot_E[chunk][::-1]] = chunk[::-1]
        later, firsts = [rows[:0]], [rows[:0]]
        for chunk in chunks:
            first = self._first[slot_E[chunk]]
            is_later = first != chunk
            later.append(chunk[is_later])
            firsts.append(first[is_later].astype(np.int64))
        return np.concatenate(later), np.concatenate(firsts)

    def in_slots(self, slot_E: Slots, rows: Index, wanted: Slots) -> Index:
        """Return the rows whose slot is among the wanted ones."""
        self._marked[wanted] = True
        matching = [chunk[self._marked[slot_E[chunk]]] for chunk in _chunks(rows)]
        self._marked[wanted] = False
        return np.concatenate([rows[:0], *matching])


@cache
def block_masks(num_hashes: int, max_distance: int) -> Sequence[np.uint64]:
    """Return masks such that any two hashes within the distance agree on the bits of one of them.

    The 64 bits are split into more blocks than the distance, and each mask leaves out
    `max_distance` blocks, since differing bits cannot be in more. More blocks give longer masks,
    under which fewer hashes collide by chance, but also more masks; the cheapest number is used.
    """

    def cost(num_blocks: int) -> float:
        bits = 64 * (num_blocks - max_distance) / num_blocks
        collisions = num_hashes / 2**bits
        return math.comb(num_blocks, max_distance) * (_LOOK_UP + _COMPARE * collisions)

    num_blocks = min(range(max_distance + 1, max_distance + 6), key=cost)
    chosen = combinations(_blocks(num_blocks), max_distance)
    return [np.uint64(2**64 - 1 - sum(left_out)) for left_out in chosen]


@cache
def first_masks(num_hashes: int, max_distance: int) -> Callable[[Words], Index]:
    """Return a function that says under which of the masks two hashes agree first.

    It takes the differing bits of pairs and returns the index of a mask of `block_masks` with the
    same arguments: a pair that agrees on several masks meets in as many tables.
    """
    masks = block_masks(num_hashes, max_distance)
    num_blocks = next(
        number
        for number in range(max_distance + 1, max_distance + 6)
        if math.comb(number, max_distance) == len(masks)
    )
    blocks = _blocks(num_blocks)
    index_of_set = np.full(1 << num_blocks, len(masks), dtype=np.int64)
    for number, left_out in enumerate(combinations(range(num_blocks), max_distance)):
        for size in range(max_distance + 1):
            for differing in combinations(left_out, size):
                place = sum(1 << block for block in differing)
                index_of_set[place] = min(index_of_set[place], number)

    def first_mask(bits_P: Words) -> Index:
        differing_P = np.zeros(len(bits_P), dtype=np.int64)
        for number, block in enumerate(blocks):
            differing_P |= ((bits_P & np.uint64(block)) != 0).astype(np.int64) << number
        return index_of_set[differing_P]

    return first_mask


def _blocks(num_blocks: int) -> Sequence[int]:
    """Split the 64 bits into blocks."""
    # Adjacent bits go to different blocks, since many pictures agree on all bits of a region.
    places = [bit * 37 % 64 for bit in range(64)]
    edges = [round(block * 64 / num_blocks) for block in range(num_blocks + 1)]
    return [sum(1 << place for place in places[a:b]) for a, b in pairwise(edges)]


def _chunks(rows: Index) -> list[Index]:
    return [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
