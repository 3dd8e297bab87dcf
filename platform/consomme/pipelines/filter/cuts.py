"""Find the samples on either side of a cut, a few of each, while walking over all of them.

One decision is made here: who is shown is decided by the order that was cut, and by hashes where no
order was, so a page shows the same samples however they lie in files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.keep.policy import Edge
from consomme.curate.keep.radix import coarse_order

# Shapes: N samples of a part.
NUM_PICTURES = 6
"""Shown on each side of a cut."""


@dataclass(frozen=True)
class CutSample:
    """One sample at a cut."""

    order: int
    number: int
    score: str
    """Name and number of what is cut; empty where no order decides."""

    stays: bool


class AtEdge:
    """Gathers the last samples before a cut and the first behind it."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.cut = "nothing" if edge.cut.value is None else f"{edge.cut.value:.6g}"
        self.label = f"around {edge.label} {self.cut}" + (f" ({edge.end})" if edge.end else "")
        self.before: list[CutSample] = []
        self.behind: list[CutSample] = []

    def add(
        self,
        columns: Mapping[str, NDArray[Any]],
        hash_N: NDArray[np.uint64],
        mask_N: NDArray[np.bool_],
        at: int,
    ) -> None:
        """Look at a part.

        Args:
            columns: What the policy reads.
            hash_N: Hashes of ids.
            mask_N: What stays in the end.
            at: Samples before the part.
        """
        value_N = self.edge.values(columns)
        order_N = coarse_order(value_N, hash_N, descending=self.edge.cut.descending)
        inside_N = self.edge.cut.mask(value_N, hash_N)
        among_N = ~np.isnan(value_N)
        if self.edge.among is not None:
            among_N &= self.edge.among(columns, hash_N)

        def seen(rows: NDArray[np.intp]) -> Iterator[CutSample]:
            for row in rows.tolist():
                score = f"{self.edge.label} {value_N[row]:.6g}"
                yield CutSample(int(order_N[row]), at + row, score, bool(mask_N[row]))

        before = [*self.before, *seen(_last(np.flatnonzero(among_N & inside_N), order_N))]
        self.before = sorted(before, key=_by_order)[-NUM_PICTURES:]
        behind = [*self.behind, *seen(_first(np.flatnonzero(among_N & ~inside_N), order_N))]
        self.behind = sorted(behind, key=_by_order)[:NUM_PICTURES]

    def seen(self) -> list[CutSample]:
        """Return what was found, in order."""
        return [*self.before, *self.behind]


class AtRandom:
    """Gathers some that stay and some that do not, where no order decides."""

    label = "some that stay, some that do not"

    def __init__(self) -> None:
        self.found: dict[bool, list[CutSample]] = {True: [], False: []}

    def add(
        self,
        columns: Mapping[str, NDArray[Any]],
        hash_N: NDArray[np.uint64],
        mask_N: NDArray[np.bool_],
        at: int,
    ) -> None:
        """Look at a part, as at an edge."""
        del columns
        for stays, found in self.found.items():
            rows = _first(np.flatnonzero(mask_N == stays), hash_N)
            more = [CutSample(int(hash_N[row]), at + row, "", stays) for row in rows.tolist()]
            self.found[stays] = sorted([*found, *more], key=_by_order)[:NUM_PICTURES]

    def seen(self) -> list[CutSample]:
        """Return what was found, those that stay first."""
        return [*self.found[True], *self.found[False]]


def _by_order(seen: CutSample) -> tuple[int, int]:
    return seen.order, seen.number


def _first(rows: NDArray[np.intp], order_N: NDArray[np.uint64]) -> NDArray[np.intp]:
    if len(rows) <= NUM_PICTURES:
        return rows
    return rows[np.argpartition(order_N[rows], NUM_PICTURES)[:NUM_PICTURES]]


def _last(rows: NDArray[np.intp], order_N: NDArray[np.uint64]) -> NDArray[np.intp]:
    return _first(rows, ~order_N)
