"""Choosing samples one by one by their distances from those chosen: what k_center and BADGE share.

The one decision: the same samples whatever their order, also in the last bit. So distances are
summed row by row and not by a matrix product, whose rounding depends on where in a block a row
stands; the first choice, ties and draws go by the hashes of ids. Vectors stay where they are, on
the disk when a run is filtered, and are read once per choice.

`k` of `N` samples cost `N × k` distances, which is quadratic where `k` is a fraction; more than
`MAX_DISTANCES` are refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.hashing import mix_hash
from consomme.base.telemetry import Progress
from consomme.curate.keep.policy import Chunks, Scores, column_of

# Shapes: N samples of a chunk, D numbers of a vector, B rows of a block.
MAX_DISTANCES = 10**11
"""Some six hours of `k_center` on two cores at 512 numbers: 2.3 million a second and core."""

_BLOCK = 1 << 19
"""Numbers that are worked on at a time: what a processor's own memory holds."""

_WORTH_A_BAR = 10**8


def vectors_of(scores: Scores, column: str) -> NDArray[np.float32]:
    """Return a column of vectors, (N, D).

    Raises:
        DataError: There is none of this name, or it holds something else.
    """
    values_ND = column_of(scores, column)
    if values_ND.ndim != 2 or not values_ND.shape[1]:
        raise DataError(f"column {column!r} holds no vectors; expected lists of floats")
    return values_ND


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A decision by name: a set of hashes of ids."""

    hashes: NDArray[np.uint64]
    """Ascending."""

    stats: dict[str, Any]

    @classmethod
    def of(cls, hashes: Sequence[int] | NDArray[np.uint64], stats: dict[str, Any]) -> Chosen:
        """Sort the hashes."""
        return cls(hashes=np.sort(np.asarray(hashes, dtype=np.uint64)), stats=stats)

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample whether it stays."""
        del scores
        if not len(self.hashes):
            return np.zeros(len(hash_N), dtype=bool)
        place_N = np.searchsorted(self.hashes, hash_N).clip(max=len(self.hashes) - 1)
        kept: NDArray[np.bool_] = self.hashes[place_N] == hash_N
        return kept

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {"cut": None, "tie_count": 0, **self.stats}


Center = tuple[int, int]
"""Where a chosen sample is: number of the chunk, and row in it."""

FromCenter = Callable[[Center], Callable[[int, slice], NDArray[np.floating]]]
"""Given a center, a function that gives the squared distances of some rows of a chunk from it."""


class CandidatePool:
    """The samples to choose from: chunks of vectors, and how far each is from what is chosen."""

    def __init__(self, chunks: Chunks, columns: Sequence[str], seed: int) -> None:
        """Look through the vectors once; a row with a NaN or an infinity is missing."""
        self.vectors: list[tuple[NDArray[np.float32], ...]] = []
        self.hashes: list[NDArray[np.uint64]] = []
        self.keys: list[NDArray[np.uint64]] = []
        self.near: list[NDArray[np.float64]] = []
        """Squared distance from the nearest chosen one; negative where nothing can be chosen."""

        self.num_missing = 0
        for scores, hash_N in chunks():
            matrices = tuple(vectors_of(scores, name) for name in columns)
            near_N = np.full(len(hash_N), np.inf)
            for matrix_ND in matrices:
                for rows in row_slices(*matrix_ND.shape):
                    near_N[rows][~np.isfinite(matrix_ND[rows]).all(axis=1)] = -1.0
            self.num_missing += int((near_N < 0).sum())
            self.vectors.append(matrices)
            self.hashes.append(hash_N)
            self.keys.append(mix_hash(hash_N, seed))
            self.near.append(near_N)
        shapes = {tuple(m.shape[1] for m in matrices) for matrices in self.vectors}
        if len(shapes) > 1:
            raise DataError(f"{', '.join(columns)}: found vectors of different lengths: {shapes}")
        self.width = sum(next(iter(shapes), ()))
        self.num_samples = sum(map(len, self.hashes)) - self.num_missing
        self._blocks = [
            (number, rows)
            for number, hash_N in enumerate(self.hashes)
            for rows in row_slices(len(hash_N), self.width)
        ]

    @property
    def stats(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"num_scored": self.num_samples, "num_missing": self.num_missing}

    def choose(
        self,
        what: str,
        count: int,
        from_center: FromCenter,
        prefer: Callable[[int, int], NDArray[np.float64]],
    ) -> list[int]:
        """Choose samples one by one, each by its distance from those before.

        Args:
            what: Name of the policy, for messages.
            count: How many.
            from_center: Measures.
            prefer: Given a step and the number of a chunk, a number for each of its samples; the
                largest is chosen, and of equal ones that with the smallest key.

        Returns:
            Hashes of the chosen, in order.

        Raises:
            DataError: This would take too long.
        """
        check_work(what, self.num_samples, count)
        chosen: list[int] = []
        bar: contextlib.AbstractContextManager[Progress | None] = contextlib.nullcontext()
        if count * self.num_samples > _WORTH_A_BAR:
            bar = Progress(count, what, "samples")
        workers = min(os.cpu_count() or 1, len(self._blocks))
        with bar as progress, ThreadPoolExecutor(max(1, workers)) as threads:
            for step in range(count):
                center = self._best(step, prefer)
                chosen.append(int(self.hashes[center[0]][center[1]]))
                self.near[center[0]][center[1]] = -1.0
                measure = from_center(center)

                def update(share: int, measure: Any = measure) -> None:
                    for number, rows in self._blocks[share::workers]:
                        near_B = self.near[number][rows]
                        # A missing vector gives NaN, which `fmin` passes over.
                        np.fmin(near_B, measure(number, rows), out=near_B)

                list((threads.map if workers > 1 else map)(update, range(workers)))
                if progress is not None:
                    progress.advance()
        return chosen

    def _best(self, step: int, prefer: Callable[[int, int], NDArray[np.float64]]) -> Center:
        best: tuple[float, int, Center] | None = None
        for number, near_N in enumerate(self.near):
            value_N = np.where(near_N < 0, -np.inf, prefer(step, number))
            top = value_N.max(initial=-np.inf)
            tied = np.flatnonzero((value_N == top) & (near_N >= 0))
            if not len(tied):
                continue
            row = int(tied[self.keys[number][tied].argmin()])
            candidate = (-float(top), int(self.keys[number][row]), (number, row))
            best = candidate if best is None else min(best, candidate)
        assert best is not None
        return best[2]


def check_work(what: str, num_samples: int, count: int) -> None:
    """Refuse what would take days.

    Raises:
        DataError: So many distances are too many.
    """
    if num_samples * count > MAX_DISTANCES:
        other = "{name: random_fraction, fraction: 0.01}"
        raise DataError(
            f"{what}: {count:,} of {num_samples:,} samples take {num_samples * count:.1e}"
            f" distances, more than {MAX_DISTANCES:.0e}. Ask for at most"
            f" {MAX_DISTANCES // num_samples:,} (samples: …), or let a cheaper policy thin them out"
            f" before: {{name: in_turn, policies: [{other}, {{name: {what}, …}}]}}"
        )


def row_slices(rows: int, width: int) -> list[slice]:
    """Cut rows into blocks of a size to work on at a time."""
    size = max(1, _BLOCK // max(1, width))
    return [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
