"""Greedy selection of samples by distance from those already selected, for k-center and BADGE.

The selection does not depend on the order of the samples, not even through rounding. So distances
are summed row by row and not by a matrix product, whose rounding depends on a row's position in its
block; the first sample, ties and random draws go by hashes of ids. Vectors are not copied (they are
memory-mapped when a run is filtered), and are read once per selected sample.

Selecting `k` of `N` samples costs `N × k` distances, which is quadratic if `k` is a fraction; more
than `MAX_DISTANCES` are refused.
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
"""About six hours of `k_center` on two cores at 512 dimensions: 2.3 million per second and core."""

_BLOCK = 1 << 19
"""Vector components processed at a time, so that a block fits into the CPU cache."""

_MIN_PROGRESS_DISTANCES = 10**8


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
class SelectedIds:
    """Keeps the samples whose id hash is in a set."""

    hashes: NDArray[np.uint64]
    """Ascending."""

    stats: dict[str, Any]

    @classmethod
    def of(cls, hashes: Sequence[int] | NDArray[np.uint64], stats: dict[str, Any]) -> SelectedIds:
        """Make the decision from hashes in any order."""
        return cls(hashes=np.sort(np.asarray(hashes, dtype=np.uint64)), stats=stats)

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return True for each sample that is kept."""
        del scores
        if not len(self.hashes):
            return np.zeros(len(hash_N), dtype=bool)
        place_N = np.searchsorted(self.hashes, hash_N).clip(max=len(self.hashes) - 1)
        kept: NDArray[np.bool_] = self.hashes[place_N] == hash_N
        return kept

    def describe(self) -> dict[str, Any]:
        """Return the statistics for the manifest."""
        return {"cut": None, "tie_count": 0, **self.stats}


Center = tuple[int, int]
"""Position of a selected sample: chunk index, and row in the chunk."""

FromCenter = Callable[[Center], Callable[[int, slice], NDArray[np.floating]]]
"""Maps a center to a function that returns the squared distances of rows of a chunk from it."""


class CandidatePool:
    """The candidates: chunks of vectors, and each one's distance from the selected samples."""

    def __init__(self, chunks: Chunks, columns: Sequence[str], seed: int) -> None:
        """Check the vectors in one pass; a row with a NaN or an infinity counts as missing."""
        self.vectors: list[tuple[NDArray[np.float32], ...]] = []
        self.hashes: list[NDArray[np.uint64]] = []
        self.keys: list[NDArray[np.uint64]] = []
        self.nearest_sq: list[NDArray[np.float64]] = []
        """Squared distance from the nearest selected sample; negative: missing or selected."""

        self.num_missing = 0
        for scores, hash_N in chunks():
            matrices = tuple(vectors_of(scores, name) for name in columns)
            nearest_N = np.full(len(hash_N), np.inf)
            for matrix_ND in matrices:
                for rows in row_slices(*matrix_ND.shape):
                    nearest_N[rows][~np.isfinite(matrix_ND[rows]).all(axis=1)] = -1.0
            self.num_missing += int((nearest_N < 0).sum())
            self.vectors.append(matrices)
            self.hashes.append(hash_N)
            self.keys.append(mix_hash(hash_N, seed))
            self.nearest_sq.append(nearest_N)
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
        """Statistics for the manifest."""
        return {"num_scored": self.num_samples, "num_missing": self.num_missing}

    def select(
        self,
        policy_name: str,
        count: int,
        from_center: FromCenter,
        priority: Callable[[int, int], NDArray[np.float64]],
    ) -> list[int]:
        """Select samples one by one, each by its distance from those before.

        Args:
            policy_name: For messages.
            count: Number of samples to select.
            from_center: Computes distances.
            priority: Maps a step and a chunk index to a number for each sample of the chunk; the
                sample with the largest is selected, among equal ones that with the smallest key.

        Returns:
            Hashes of the selected samples, in order.

        Raises:
            DataError: This would take more than `MAX_DISTANCES`.
        """
        check_cost(policy_name, self.num_samples, count)
        selected: list[int] = []
        bar: contextlib.AbstractContextManager[Progress | None] = contextlib.nullcontext()
        if count * self.num_samples > _MIN_PROGRESS_DISTANCES:
            bar = Progress(count, policy_name, "samples")
        workers = min(os.cpu_count() or 1, len(self._blocks))
        with bar as progress, ThreadPoolExecutor(max(1, workers)) as threads:
            for step in range(count):
                center = self._best(step, priority)
                selected.append(int(self.hashes[center[0]][center[1]]))
                self.nearest_sq[center[0]][center[1]] = -1.0
                measure = from_center(center)

                def update(worker: int, measure: Any = measure) -> None:
                    for number, rows in self._blocks[worker::workers]:
                        nearest_B = self.nearest_sq[number][rows]
                        # A missing vector gives NaN, which `fmin` ignores.
                        np.fmin(nearest_B, measure(number, rows), out=nearest_B)

                list((threads.map if workers > 1 else map)(update, range(workers)))
                if progress is not None:
                    progress.advance()
        return selected

    def _best(self, step: int, priority: Callable[[int, int], NDArray[np.float64]]) -> Center:
        best: tuple[float, int, Center] | None = None
        for number, nearest_N in enumerate(self.nearest_sq):
            value_N = np.where(nearest_N < 0, -np.inf, priority(step, number))
            top = value_N.max(initial=-np.inf)
            tied = np.flatnonzero((value_N == top) & (nearest_N >= 0))
            if not len(tied):
                continue
            row = int(tied[self.keys[number][tied].argmin()])
            candidate = (-float(top), int(self.keys[number][row]), (number, row))
            best = candidate if best is None else min(best, candidate)
        assert best is not None
        return best[2]


def check_cost(policy_name: str, num_samples: int, count: int) -> None:
    """Refuse a selection that would take days.

    Raises:
        DataError: It takes more than `MAX_DISTANCES`.
    """
    if num_samples * count > MAX_DISTANCES:
        other = "{name: random_fraction, fraction: 0.01}"
        raise DataError(
            f"{policy_name}: {count:,} of {num_samples:,} samples take {num_samples * count:.1e}"
            f" distances, more than {MAX_DISTANCES:.0e}. Ask for at most"
            f" {MAX_DISTANCES // num_samples:,} (samples: …), or let a cheaper policy reduce them"
            f" first: {{name: in_turn, policies: [{other}, {{name: {policy_name}, …}}]}}"
        )


def row_slices(rows: int, width: int) -> list[slice]:
    """Split rows into blocks of at most `_BLOCK` components."""
    size = max(1, _BLOCK // max(1, width))
    return [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
