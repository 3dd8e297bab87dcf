"""Keep policies that choose what is unlike what they have: k-center, and BADGE's k-means++.

The one decision: a policy says what a distance is and who is next; `choosing` does the rest, and
says why the order of samples cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.hashing import mix_hash
from consomme.curate.checks import check_count, check_fraction
from consomme.curate.keep.kcenter import CandidatePool, Center, Chosen, row_slices
from consomme.curate.keep.policy import KEEP_POLICIES, Chunks, Decision, FromChunks, floor_count

# Shapes: N samples of a chunk, D numbers of an embedding, C classes, B rows of a block.


class _Choosing(FromChunks):
    """What k_center and badge have in common."""

    sweeps: ClassVar[bool] = False
    """A preview does not try other fractions: each would cost as much as a run."""

    fraction: float
    samples: int | None

    def __post_init__(self) -> None:
        """Check fraction and number."""
        check_fraction(self.fraction)
        check_count(self.samples or 0)

    def count(self, pool: CandidatePool) -> int:
        """Say how many are chosen."""
        if self.samples is not None:
            return min(self.samples, pool.num_samples)
        return floor_count(self.fraction, pool.num_samples)


@KEEP_POLICIES.register("k_center")
@dataclass(frozen=True, kw_only=True)
class KCenter(_Choosing):
    """Choose samples so that none is far from a chosen one: greedy k-center on a vector column.

    The first is the one with the smallest seeded hash; then always the one farthest from all
    chosen, by Euclidean distance. Costs `N × k` distances, each of as many numbers as a vector has,
    and about 25 bytes of memory per sample. Vectors are read from the disk, but are held in memory
    if another policy around this one lets it decide about a part.

    Source: Sener and Savarese, arXiv 1708.00489, algorithm 1; as "Coreset" in PCB (CVPR 2024).
    """

    column: str = "tags.embedding"
    """Column of vectors."""

    fraction: float = 0.1
    """Share of the samples with a vector to choose, in [0, 1]; the count is rounded down."""

    samples: int | None = None
    """How many to choose; None goes by the fraction."""

    seed: int = 0
    """Another seed, another start."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of vectors."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Look at all vectors once for each choice."""
        pool = CandidatePool(chunks, [self.column], self.seed)

        def from_center(center: Center) -> Callable[[int, slice], NDArray[np.floating]]:
            center_D = np.array(pool.vectors[center[0]][0][center[1]])

            def measure(number: int, rows: slice) -> NDArray[np.floating]:
                apart_BD = pool.vectors[number][0][rows] - center_D
                np.multiply(apart_BD, apart_BD, out=apart_BD)
                squared: NDArray[np.floating] = apart_BD.sum(axis=1)
                return squared

            return measure

        chosen = pool.choose(
            "k_center", self.count(pool), from_center, lambda _, number: pool.near[number]
        )
        radius = max((float(near_N.max(initial=0.0)) for near_N in pool.near), default=0.0) ** 0.5
        return Chosen.of(chosen, {**pool.stats, **({"radius": radius} if chosen else {})})


@KEEP_POLICIES.register("badge")
@dataclass(frozen=True, kw_only=True)
class Badge(_Choosing):
    """Choose samples that would teach a classifier most, and different things: BADGE.

    A sample's gradient embedding is `(probs - onehot(argmax)) ⊗ embedding`: long where the
    classifier is unsure. The longest is chosen first, then by k-means++: each with a chance in
    proportion to its squared distance from the chosen ones, drawn by seeded hashes of ids. The
    outer product is never made, so a distance costs C + D numbers and not C × D. Costs `N × k`
    distances, each two to three times as much work as in `k_center`, and about 60 bytes of memory
    per sample.

    Source: Ash et al., arXiv 1906.03671; as in PCB (CVPR 2024).
    """

    probs: str = "tags.class_probs"
    """Column of vectors: how likely each class is."""

    column: str = "tags.embedding"
    """Column of vectors: what the classifier sees."""

    fraction: float = 0.1
    """Share of the samples with both vectors to choose, in [0, 1]; the count is rounded down."""

    samples: int | None = None
    """How many to choose; None goes by the fraction."""

    seed: int = 0
    """Another seed, other draws."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return both columns of vectors."""
        return (self.probs, self.column)

    def decide(self, chunks: Chunks) -> Decision:
        """Look at all vectors once for each choice."""
        pool = CandidatePool(chunks, [self.probs, self.column], self.seed)
        top: list[NDArray[np.intp]] = []
        norms: list[NDArray[np.float64]] = []
        for number, (probs_NC, embedding_ND) in enumerate(pool.vectors):
            parts = []
            for rows in row_slices(len(pool.hashes[number]), pool.width):
                probs_BC = probs_NC[rows].astype(np.float64)
                top_B = probs_BC.argmax(axis=1)
                probs_BC[np.arange(len(top_B)), top_B] -= 1.0
                parts.append((top_B, _dot(probs_BC, probs_BC) * _lengths(embedding_ND[rows])))
            top.append(np.concatenate([part[0] for part in parts] or [np.zeros(0, np.intp)]))
            norms.append(np.concatenate([part[1] for part in parts] or [np.zeros(0)]))

        def from_center(center: Center) -> Callable[[int, slice], NDArray[np.floating]]:
            chunk, row = center
            slope_C = pool.vectors[chunk][0][row].astype(np.float64)
            slope_C[top[chunk][row]] -= 1.0
            seen_D = pool.vectors[chunk][1][row].astype(np.float64)
            length = norms[chunk][row]

            def measure(number: int, rows: slice) -> NDArray[np.floating]:
                probs_NC, embedding_ND = pool.vectors[number]
                slopes_B = _dot(probs_NC[rows], slope_C) - slope_C[top[number][rows]]
                product_B = slopes_B * _dot(embedding_ND[rows], seen_D)
                squared: NDArray[np.floating] = norms[number][rows] + length - 2.0 * product_B
                return squared.clip(min=0.0)

            return measure

        def prefer(step: int, number: int) -> NDArray[np.float64]:
            if step == 0:
                return norms[number]
            # The largest of log(u) / weight is a draw by weight; u comes from the sample's hash.
            bits_N = mix_hash(pool.keys[number], step) >> np.uint64(11)
            uniform_N = (bits_N.astype(np.float64) + 0.5) / 2.0**53
            with np.errstate(divide="ignore"):
                drawn: NDArray[np.float64] = np.log(uniform_N) / pool.near[number].clip(min=0.0)
            return drawn

        chosen = pool.choose("badge", self.count(pool), from_center, prefer)
        return Chosen.of(chosen, pool.stats)


def _dot(left_BD: NDArray[Any], right_D: NDArray[Any]) -> NDArray[np.float64]:
    """Sum products row by row in float64; where a row stands does not matter."""
    products: NDArray[np.float64] = np.multiply(left_BD, right_D, dtype=np.float64)
    summed: NDArray[np.float64] = products.sum(axis=1)
    return summed


def _lengths(vectors_BD: NDArray[np.float32]) -> NDArray[np.float64]:
    return _dot(vectors_BD, vectors_BD)
