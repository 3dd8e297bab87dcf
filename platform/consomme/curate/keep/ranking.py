"""Keep policies that rank all samples by one number and cut once, and random ones.

A fraction is taken of the samples that have a score, and the count is rounded down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.bounds import Fraction, NonNegativeInt
from consomme.base.hashing import mix_hash
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    Boundary,
    ChunkedPolicy,
    Chunks,
    Count,
    Decision,
    Scores,
    describe_cut,
    floor_count,
    numbers_of,
)
from consomme.curate.keep.radix import Cut, find_cut

# Shapes: N samples.
RankKey = Callable[[Scores], NDArray[np.floating]]
"""Computes the number that ranks each sample."""


@dataclass(frozen=True, kw_only=True)
class RankedDecision:
    """Keeps the samples on one side of a cut."""

    label: str
    values: RankKey
    cut: Cut

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return True for each sample that is kept."""
        return self.cut.mask(self.values(scores), hash_N)

    def describe(self) -> dict[str, Any]:
        """Return the statistics of the cut."""
        return describe_cut(self.cut)

    def boundaries(self) -> tuple[Boundary, ...]:
        """Return the cut."""
        return (Boundary(label=self.label, values=self.values, cut=self.cut),)


def by_column(name: str) -> RankKey:
    """Rank by one column of numbers."""
    return lambda scores: numbers_of(scores, name)


def rank(chunks: Chunks, values: RankKey, count: Count, *, descending: bool) -> Cut:
    """Find the cut that keeps the first `count` samples; see `radix.find_cut`."""

    def keyed_chunks() -> Iterable[tuple[NDArray[np.floating], NDArray[np.uint64]]]:
        for scores, hash_N in chunks():
            yield values(scores), hash_N

    return find_cut(keyed_chunks, count, descending=descending)


class RankingPolicy(ChunkedPolicy):
    """Base of policies that keep the first samples by one number, from one or more columns."""

    column: str

    @property
    def descending(self) -> bool:
        """Whether the largest scores come first."""
        return False

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column that ranks."""
        return (self.column,)

    @property
    def label(self) -> str:
        """Name of the quantity that ranks."""
        return self.column

    def values(self, scores: Scores) -> NDArray[np.floating]:
        """Return the number that ranks each sample."""
        return numbers_of(scores, self.column)

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep, given how many have a score."""
        raise TypeError(f"{type(self).__name__} defines no count()")

    def decide(self, chunks: Chunks) -> Decision:
        """Find the exact cut in two passes, or up to six if it falls among equal scores."""
        cut = rank(chunks, self.values, self.count, descending=self.descending)
        return RankedDecision(label=self.label, values=self.values, cut=cut)


@KEEP_POLICIES.register("lowest_fraction")
@dataclass(frozen=True, kw_only=True)
class LowestFraction(RankingPolicy):
    """Keep the samples with the smallest scores: exactly `floor(fraction * n_scored)` of them.

    Source: arXiv 2409.04828 (POINTS), perplexity filter: lowest 20 %. Unlike the released script,
    ties are broken by the sample's hash and not by input order, and samples without a score are
    counted.
    """

    column: str = "perplexity"
    """Score column to rank by."""

    fraction: Fraction = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep."""
        return floor_count(self.fraction, num_scored)


@KEEP_POLICIES.register("highest_fraction")
@dataclass(frozen=True, kw_only=True)
class HighestFraction(RankingPolicy):
    """Keep the samples with the largest scores: exactly `floor(fraction * n_scored)` of them.

    For scores where higher is better, such as `image_gain`: how much the picture adds to the
    caption's log-likelihood, so that a fluent caption of another picture does not pass.
    """

    column: str = "image_gain"
    """Score column to rank by."""

    fraction: Fraction = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    @property
    def descending(self) -> bool:
        """The largest scores come first."""
        return True

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep."""
        return floor_count(self.fraction, num_scored)


@KEEP_POLICIES.register("drop_highest_fraction")
@dataclass(frozen=True, kw_only=True)
class DropHighestFraction(RankingPolicy):
    """Drop the samples with the largest scores: exactly `floor(fraction * n_scored)` of them.

    Source: OBELICS, arXiv 2306.16527, drops the documents of highest perplexity.
    """

    column: str = "perplexity"
    """Score column to rank by."""

    fraction: Fraction = 0.1
    """Share of the scored samples to drop, in [0, 1]; the count is rounded down."""

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep."""
        return num_scored - floor_count(self.fraction, num_scored)


@KEEP_POLICIES.register("lowest_count")
@dataclass(frozen=True, kw_only=True)
class LowestCount(RankingPolicy):
    """Keep a fixed number of samples with the smallest scores; all, if there are fewer."""

    samples: NonNegativeInt
    """How many to keep."""

    column: str = "perplexity"
    """Score column to rank by."""

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep."""
        return min(self.samples, num_scored)


@KEEP_POLICIES.register("highest_count")
@dataclass(frozen=True, kw_only=True)
class HighestCount(RankingPolicy):
    """Keep a fixed number of samples with the largest scores; all, if there are fewer."""

    samples: NonNegativeInt
    """How many to keep."""

    column: str = "image_gain"
    """Score column to rank by."""

    @property
    def descending(self) -> bool:
        """The largest scores come first."""
        return True

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep."""
        return min(self.samples, num_scored)


@dataclass(frozen=True, kw_only=True)
class RandomDecision:
    """Keeps a random subset, drawn by seeded hashes of the sample ids."""

    cut: Cut
    seed: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return True for each sample that is kept."""
        del scores
        return self.cut.mask(np.zeros(len(hash_N), dtype=np.float32), mix_hash(hash_N, self.seed))

    def describe(self) -> dict[str, Any]:
        """Return the statistics for the manifest; there is no score cut."""
        stats = {"cut": None, "tie_count": 0, "num_missing": 0}
        return {**stats, "num_scored": self.cut.num_scored}


def sample_random(chunks: Chunks, count: Count, seed: int) -> RandomDecision:
    """Draw exactly `count` of all samples by seeded hashes of their ids."""

    def keyed_chunks() -> Iterable[tuple[NDArray[np.float32], NDArray[np.uint64]]]:
        for _, hash_N in chunks():
            yield np.zeros(len(hash_N), dtype=np.float32), mix_hash(hash_N, seed)

    return RandomDecision(cut=find_cut(keyed_chunks, count), seed=seed)


class RandomPolicy(ChunkedPolicy):
    """Base of policies that select at random, by sample ids and a seed only.

    Two runs over the same samples in different shards therefore keep the same ones.
    """

    seed: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Return no column: no score is used."""
        return ()

    def count(self, num_samples: int) -> int:
        """Return how many of all samples to keep."""
        raise TypeError(f"{type(self).__name__} defines no count()")

    def decide(self, chunks: Chunks) -> RandomDecision:
        """Find the exact cut of the seeded hashes."""
        return sample_random(chunks, self.count, self.seed)


@KEEP_POLICIES.register("random_fraction")
@dataclass(frozen=True, kw_only=True)
class RandomFraction(RandomPolicy):
    """Keep a seeded random share, exactly `floor(fraction * n)`: the baseline of other policies."""

    fraction: Fraction = 0.2
    """Share of all samples to keep, in [0, 1]; the count is rounded down."""

    seed: int = 0
    """Another seed draws another subset."""

    def count(self, num_samples: int) -> int:
        """Return how many samples to keep."""
        return floor_count(self.fraction, num_samples)


@KEEP_POLICIES.register("random_count")
@dataclass(frozen=True, kw_only=True)
class RandomCount(RandomPolicy):
    """Keep a fixed number of samples, drawn at random with a seed; all, if there are fewer."""

    samples: NonNegativeInt
    """How many to keep."""

    seed: int = 0
    """Another seed draws other samples."""

    def count(self, num_samples: int) -> int:
        """Return how many samples to keep."""
        return min(self.samples, num_samples)
