"""Tables that bring together hashes which agree on some of their bits.

One decision is made here: a table is an array with a place for every few hashes, filled by
scattering; nothing is sorted. Different bits may share a place, so whoever meets there has to be
compared. The arrays are made once and used for all choices of bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

# Shapes: E hashes.
Index = NDArray[np.int64]
Words = NDArray[np.uint64]
Slots = NDArray[np.uint32]

PIECE = 1 << 20
"""Rows or pairs that are looked at together, so that intermediate arrays are small."""

_MAX_BITS = 26
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LOOK_UP, _COMPARE = 100.0, 40.0
"""Measured nanoseconds for one hash in one table, and for a chance meeting."""


class HashTable:
    """Look up hashes by some of their bits.

    Args:
        num_hashes: How many there are at most; a quarter of the slots will be taken.
    """

    def __init__(self, num_hashes: int) -> None:
        self.num_bits = min(_MAX_BITS, max(8, num_hashes.bit_length() + 2))
        self._first = np.zeros(1 << self.num_bits, dtype=np.uint32)
        self._marked = np.zeros(1 << self.num_bits, dtype=bool)

    def slots(self, hash_E: Words, mask: np.uint64) -> Slots:
        """Return a slot for each hash; hashes that agree on the mask have the same one."""
        slot_E = np.empty(len(hash_E), dtype=np.uint32)
        shift = np.uint64(64 - self.num_bits)
        for at in range(0, len(hash_E), PIECE):
            slot_E[at : at + PIECE] = ((hash_E[at : at + PIECE] & mask) * _ODD) >> shift
        return slot_E

    def later(self, slot_E: Slots, some: Index) -> tuple[Index, Index]:
        """List those of some rows (rising) that are not the first of them in their slot.

        Returns:
            The rows, and for each the first one.
        """
        pieces = _pieces(some)
        for piece in reversed(pieces):
            # Of several values for one place the last one is left.
            self._first[slot_E[piece][::-1]] = piece[::-1]
        rows, firsts = [some[:0]], [some[:0]]
        for piece in pieces:
            first = self._first[slot_E[piece]]
            is_later = first != piece
            rows.append(piece[is_later])
            firsts.append(first[is_later].astype(np.int64))
        return np.concatenate(rows), np.concatenate(firsts)

    def in_slots(self, slot_E: Slots, some: Index, wanted: Slots) -> Index:
        """List those of some rows whose slot is wanted."""
        self._marked[wanted] = True
        found = [piece[self._marked[slot_E[piece]]] for piece in _pieces(some)]
        self._marked[wanted] = False
        return np.concatenate([some[:0], *found])


@cache
def block_masks(num_hashes: int, max_distance: int) -> Sequence[np.uint64]:
    """Return masks such that any two hashes within the distance agree on the bits of one of them.

    The 64 bits are cut into more blocks than the distance, and each mask leaves out as many blocks
    as the distance is: differing bits cannot be in more. More blocks make longer masks, under which
    fewer hashes meet by chance, but more masks; what costs least is taken.
    """

    def cost(num_blocks: int) -> float:
        bits = 64 * (num_blocks - max_distance) / num_blocks
        meetings = num_hashes / 2**bits
        return math.comb(num_blocks, max_distance) * (_LOOK_UP + _COMPARE * meetings)

    num_blocks = min(range(max_distance + 1, max_distance + 6), key=cost)
    # Neighbouring bits go to different blocks: many pictures agree on all bits of a region.
    places = [bit * 37 % 64 for bit in range(64)]
    edges = [round(block * 64 / num_blocks) for block in range(num_blocks + 1)]
    blocks = [sum(1 << place for place in places[a:b]) for a, b in pairwise(edges)]
    chosen = combinations(blocks, max_distance)
    return [np.uint64(2**64 - 1 - sum(left_out)) for left_out in chosen]


def _pieces(rows: Index) -> list[Index]:
    return [rows[at : at + PIECE] for at in range(0, len(rows), PIECE)]
