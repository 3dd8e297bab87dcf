"""Collect a few samples on either side of a cut during a pass over all samples.

Samples are chosen by the order that was cut, or by hashes if there is no order, so a page shows the
same samples whatever files they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.keep.policy import Boundary
from consomme.curate.keep.radix import coarse_order

# Shapes: N samples of a chunk.
NUM_PICTURES = 6
"""Pictures shown on each side of a cut."""


@dataclass(frozen=True)
class CutSample:
    """One sample at a cut."""

    order: int
    """Position in the order that was cut."""

    number: int
    """Index in the column store."""

    score: str
    """Name and value of what is cut; empty where no order decides."""

    is_kept: bool


class BoundarySamples:
    """Collects the last samples before a cut and the first after it."""

    def __init__(self, boundary: Boundary) -> None:
        self.boundary = boundary
        self.cut = "nothing" if boundary.cut.value is None else f"{boundary.cut.value:.6g}"
        suffix = f" ({boundary.end})" if boundary.end else ""
        self.label = f"around {boundary.label} {self.cut}{suffix}"
        self.before: list[CutSample] = []
        self.after: list[CutSample] = []

    def add(
        self,
        columns: Mapping[str, NDArray[Any]],
        hash_N: NDArray[np.uint64],
        mask_N: NDArray[np.bool_],
        at: int,
    ) -> None:
        """Process a chunk.

        Args:
            columns: The columns that the policy reads.
            hash_N: Hashes of ids.
            mask_N: True for samples that are kept in the end.
            at: Number of samples before the chunk.
        """
        value_N = self.boundary.values(columns)
        order_N = coarse_order(value_N, hash_N, descending=self.boundary.cut.descending)
        inside_N = self.boundary.cut.mask(value_N, hash_N)
        among_N = ~np.isnan(value_N)
        if self.boundary.among is not None:
            among_N &= self.boundary.among(columns, hash_N)

        def samples_at(rows: NDArray[np.intp]) -> Iterator[CutSample]:
            for row in rows.tolist():
                score = f"{self.boundary.label} {value_N[row]:.6g}"
                yield CutSample(int(order_N[row]), at + row, score, bool(mask_N[row]))

        before = [*self.before, *samples_at(_last(np.flatnonzero(among_N & inside_N), order_N))]
        self.before = sorted(before, key=_by_order)[-NUM_PICTURES:]
        after = [*self.after, *samples_at(_first(np.flatnonzero(among_N & ~inside_N), order_N))]
        self.after = sorted(after, key=_by_order)[:NUM_PICTURES]

    def samples(self) -> list[CutSample]:
        """Return the collected samples, in order."""
        return [*self.before, *self.after]


class RandomSamples:
    """Collects some kept and some dropped samples, where no order decides."""

    label = "some that are kept, some that are dropped"

    def __init__(self) -> None:
        self.by_kept: dict[bool, list[CutSample]] = {True: [], False: []}

    def add(
        self,
        columns: Mapping[str, NDArray[Any]],
        hash_N: NDArray[np.uint64],
        mask_N: NDArray[np.bool_],
        at: int,
    ) -> None:
        """Process a chunk; see `BoundarySamples.add`."""
        del columns
        for is_kept, collected in self.by_kept.items():
            rows = _first(np.flatnonzero(mask_N == is_kept), hash_N)
            more = [CutSample(int(hash_N[row]), at + row, "", is_kept) for row in rows.tolist()]
            self.by_kept[is_kept] = sorted([*collected, *more], key=_by_order)[:NUM_PICTURES]

    def samples(self) -> list[CutSample]:
        """Return the collected samples, kept ones first."""
        return [*self.by_kept[True], *self.by_kept[False]]


def _by_order(sample: CutSample) -> tuple[int, int]:
    return sample.order, sample.number


def _first(rows: NDArray[np.intp], order_N: NDArray[np.uint64]) -> NDArray[np.intp]:
    if len(rows) <= NUM_PICTURES:
        return rows
    return rows[np.argpartition(order_N[rows], NUM_PICTURES)[:NUM_PICTURES]]


def _last(rows: NDArray[np.intp], order_N: NDArray[np.uint64]) -> NDArray[np.intp]:
    return _first(rows, ~order_N)
