"""Keep policies of active learning that select diverse samples: k-center (coreset), and BADGE.

A policy defines the distance and the priority of candidates; `kcenter` runs the greedy selection
and explains why the order of samples does not matter. A sample without a vector is not selected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.bounds import Fraction, NonNegativeInt
from consomme.base.hashing import mix_hash
from consomme.curate.keep.kcenter import CandidatePool, Center, SelectedIds, row_slices
from consomme.curate.keep.policy import KEEP_POLICIES, ChunkedPolicy, Chunks, Decision, floor_count

# Shapes: N samples of a chunk, D numbers of an embedding, C classes, B rows of a block.


class _SubsetPolicy(ChunkedPolicy):
    """Base of k_center and badge."""

    preview_fractions: ClassVar[bool] = False
    """A preview shows no other fractions: each would cost as much as a run."""

    fraction: float
    samples: int | None

    def count(self, pool: CandidatePool) -> int:
        """Return how many samples to select."""
        if self.samples is not None:
            return min(self.samples, pool.num_samples)
        return floor_count(self.fraction, pool.num_samples)


@KEEP_POLICIES.register("k_center")
@dataclass(frozen=True, kw_only=True)
class KCenter(_SubsetPolicy):
    """Select samples so that none is far from a selected one: greedy k-center on a vector column.

    The first sample is the one with the smallest seeded hash; each next one is the farthest from
    all selected, by Euclidean distance. Costs `N × k` distances over all dimensions, and about 25
    bytes of memory per sample. Vectors are memory-mapped, but are held in memory if this policy is
    inside another one that lets it decide about a part of the samples.

    Source: Sener and Savarese, arXiv 1708.00489, algorithm 1; as "Coreset" in PCB (CVPR 2024).
    """

    column: str = "tags.embedding"
    """Column of vectors."""

    fraction: Fraction = 0.1
    """Share of the samples with a vector to select, in [0, 1]; the count is rounded down."""

    samples: NonNegativeInt | None = None
    """Number to select; None uses the fraction."""

    seed: int = 0
    """Another seed starts from another sample."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of vectors."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Make one pass over all vectors per selected sample."""
        pool = CandidatePool(chunks, [self.column], self.seed)

        def from_center(center: Center) -> Callable[[int, slice], NDArray[np.floating]]:
            center_D = np.array(pool.vectors[center[0]][0][center[1]])

            def measure(number: int, rows: slice) -> NDArray[np.floating]:
                apart_BD = pool.vectors[number][0][rows] - center_D
                np.multiply(apart_BD, apart_BD, out=apart_BD)
                squared: NDArray[np.floating] = apart_BD.sum(axis=1)
                return squared

            return measure

        selected = pool.select(
            "k_center", self.count(pool), from_center, lambda _, number: pool.nearest_sq[number]
        )
        radius = (
            max((float(nearest_N.max(initial=0.0)) for nearest_N in pool.nearest_sq), default=0.0)
            ** 0.5
        )
        return SelectedIds.of(selected, {**pool.stats, **({"radius": radius} if selected else {})})


@KEEP_POLICIES.register("badge")
@dataclass(frozen=True, kw_only=True)
class Badge(_SubsetPolicy):
    """Select samples that are both uncertain and diverse: BADGE.

    A sample's gradient embedding is `(probs - onehot(argmax)) ⊗ embedding`, whose norm is large
    where the classifier is uncertain. The sample with the largest norm is selected first, the
    others by k-means++: each with a probability proportional to its squared distance from the
    selected ones, drawn by seeded hashes of ids. The outer product is never formed, so a distance
    takes C + D operations and not C × D. Costs `N × k` distances, each two to three times as
    expensive as in `k_center`, and about 60 bytes of memory per sample.

    Source: Ash et al., arXiv 1906.03671; as in PCB (CVPR 2024).
    """

    probs: str = "tags.class_probs"
    """Column of vectors: class probabilities."""

    column: str = "tags.embedding"
    """Column of vectors: the classifier's input."""

    fraction: Fraction = 0.1
    """Share of the samples with both vectors to select, in [0, 1]; the count is rounded down."""

    samples: NonNegativeInt | None = None
    """Number to select; None uses the fraction."""

    seed: int = 0
    """Another seed draws other samples."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return both columns of vectors."""
        return (self.probs, self.column)

    def decide(self, chunks: Chunks) -> Decision:
        """Make one pass over all vectors per selected sample."""
        pool = CandidatePool(chunks, [self.probs, self.column], self.seed)
        top: list[NDArray[np.intp]] = []
        norms: list[NDArray[np.float64]] = []
        for number, (probs_NC, embedding_ND) in enumerate(pool.vectors):
            parts = []
            for rows in row_slices(len(pool.hashes[number]), pool.width):
                probs_BC = probs_NC[rows].astype(np.float64)
                top_B = probs_BC.argmax(axis=1)
                probs_BC[np.arange(len(top_B)), top_B] -= 1.0
                parts.append((top_B, _dot(probs_BC, probs_BC) * _norms_sq(embedding_ND[rows])))
            top.append(np.concatenate([part[0] for part in parts] or [np.zeros(0, np.intp)]))
            norms.append(np.concatenate([part[1] for part in parts] or [np.zeros(0)]))

        def from_center(center: Center) -> Callable[[int, slice], NDArray[np.floating]]:
            chunk, row = center
            gradient_C = pool.vectors[chunk][0][row].astype(np.float64)
            gradient_C[top[chunk][row]] -= 1.0
            embedding_D = pool.vectors[chunk][1][row].astype(np.float64)
            norm_sq = norms[chunk][row]

            def measure(number: int, rows: slice) -> NDArray[np.floating]:
                probs_NC, embedding_ND = pool.vectors[number]
                gradient_dot_B = _dot(probs_NC[rows], gradient_C) - gradient_C[top[number][rows]]
                product_B = gradient_dot_B * _dot(embedding_ND[rows], embedding_D)
                squared: NDArray[np.floating] = norms[number][rows] + norm_sq - 2.0 * product_B
                return squared.clip(min=0.0)

            return measure

        def priority(step: int, number: int) -> NDArray[np.float64]:
            if step == 0:
                return norms[number]
            # The argmax of log(u) / weight is a weighted draw; u comes from the sample's hash.
            bits_N = mix_hash(pool.keys[number], step) >> np.uint64(11)
            uniform_N = (bits_N.astype(np.float64) + 0.5) / 2.0**53
            with np.errstate(divide="ignore"):
                drawn: NDArray[np.float64] = np.log(uniform_N) / pool.nearest_sq[number].clip(
                    min=0.0
                )
            return drawn

        selected = pool.select("badge", self.count(pool), from_center, priority)
        return SelectedIds.of(selected, pool.stats)


def _dot(left_BD: NDArray[Any], right_D: NDArray[Any]) -> NDArray[np.float64]:
    """Dot products row by row in float64; a row's position does not affect its result."""
    products: NDArray[np.float64] = np.multiply(left_BD, right_D, dtype=np.float64)
    summed: NDArray[np.float64] = products.sum(axis=1)
    return summed


def _norms_sq(vectors_BD: NDArray[np.float32]) -> NDArray[np.float64]:
    return _dot(vectors_BD, vectors_BD)
