"""Confirm pairs with near hashes by their thumbnails, which may lie in files.

Thumbnails of ten million pictures are 46 GB, so they are read by row from memory-mapped arrays, and
most pairs of different pictures are told apart by 64 coarse grey levels. Rows are gathered a few
hundred pairs at a time, so memory grows neither with the pictures nor with the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.comparison import differences, is_plausible
from consomme.curate.dedup.hash_tables import Index
from consomme.curate.dedup.thumbnails import (
    Thumbnails,
    coarse_levels,
    mirrored,
    mirrored_levels,
)

# Shapes: N samples, B bytes, P pairs.
MAX_MISSES = 3
"""So many pictures with near hashes may turn out to be others. After that the hashes say little
about a picture: only copies that were not moved are looked for, which is stricter and faster."""

_COARSE_PAIRS = 1 << 16
_PAIRS = 1 << 10


@dataclass(frozen=True, kw_only=True)
class ThumbnailTable:
    """Thumbnails of samples, one a row, in memory or mapped from files."""

    thumbnail_NB: Thumbnails  # noqa: N815
    coarse_NB: Thumbnails  # noqa: N815
    """`coarse_levels` of the thumbnails."""

    @classmethod
    def of(cls, thumbnail_NB: Thumbnails) -> ThumbnailTable:
        """Make a table of thumbnails in memory."""
        return cls(thumbnail_NB=thumbnail_NB, coarse_NB=coarse_levels(thumbnail_NB))


class CopyCheck:
    """Tell copies from pictures that have near hashes."""

    def __init__(self, table: ThumbnailTable) -> None:
        self._table = table
        # The last copy that was found of each sample: clustering asks for the same pairs again.
        self._partner_N = np.full(len(table.coarse_NB), -1)
        self._is_mirrored_N = np.zeros(len(table.coarse_NB), dtype=bool)
        self._difference_N = np.zeros(len(table.coarse_NB), dtype=np.float32)
        self._num_misses_N = np.zeros(len(table.coarse_NB), dtype=np.uint8)
        self.num_compared = 0
        """Pairs whose thumbnails were compared so far."""

    def is_copy(
        self, one: Index, other: Index, is_mirrored: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Whether the samples of each pair are copies, one of them mirrored where that is said."""
        is_copy_P = self._is_known(one, other, is_mirrored)
        is_still_P = self._num_misses_N[one] >= MAX_MISSES
        (open_,) = np.nonzero(~is_copy_P)
        for at in range(0, len(open_), _COARSE_PAIRS):
            pair = open_[at : at + _COARSE_PAIRS]
            coarse = self._table.coarse_NB[other[pair]]
            turned = is_mirrored[pair]
            coarse[turned] = mirrored_levels(coarse[turned])
            is_copy_P[pair] = is_plausible(
                self._table.coarse_NB[one[pair]], coarse, is_still_P[pair]
            )
        plausible = open_[is_copy_P[open_]]
        found = self._differences(
            one[plausible], other[plausible], is_mirrored[plausible], is_still_P[plausible]
        )
        is_copy_P[plausible] = found <= 1
        missed, counts = np.unique(one[plausible[found > 1]], return_counts=True)
        self._num_misses_N[missed] = np.minimum(self._num_misses_N[missed] + counts, MAX_MISSES)
        pair, found = plausible[found <= 1], found[found <= 1]
        self._partner_N[one[pair]] = other[pair]
        self._is_mirrored_N[one[pair]] = is_mirrored[pair]
        self._difference_N[one[pair]] = found
        return is_copy_P

    def _is_known(
        self, one: Index, other: Index, is_mirrored: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = (self._partner_N[one] == other) & (
            self._is_mirrored_N[one] == is_mirrored
        )
        return known

    def smallest_difference(
        self, one: Index, other: Index, *, is_mirrored: bool
    ) -> NDArray[np.float32]:
        """Return the difference of each pair; the smaller one if they may be mirrored."""
        found_P = np.zeros(len(one), dtype=np.float32)
        (differing,) = np.nonzero(one != other)
        one, other = one[differing], other[differing]
        no = np.zeros(len(one), dtype=bool)
        smallest = self._differences(one, other, no, no)
        if is_mirrored:
            smallest = np.minimum(smallest, self._differences(one, other, ~no, no))
        found_P[differing] = smallest
        return found_P

    def _differences(
        self,
        one: Index,
        other: Index,
        is_mirrored: NDArray[np.bool_],
        is_still: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        known_P = self._is_known(one, other, is_mirrored)
        found_P = np.where(known_P, self._difference_N[one], np.float32(0))
        (open_,) = np.nonzero(~known_P)
        self.num_compared += len(open_)
        for at in range(0, len(open_), _PAIRS):
            pair = open_[at : at + _PAIRS]
            ones, others = (self._table.thumbnail_NB[side[pair]] for side in (one, other))
            turned = is_mirrored[pair]
            others[turned] = mirrored(others[turned])
            (differing,) = np.nonzero((ones != others).any(axis=1))
            found_P[pair[differing]] = differences(
                ones[differing], others[differing], is_still[pair[differing]]
            )
        return found_P
