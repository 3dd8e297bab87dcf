"""Keep policies that rank all samples by one number and cut once, and those that draw lots.

The one decision: fractions count the samples that have a score, and are rounded down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.hashing import mix_hash
from consomme.curate.checks import check_count, check_fraction
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    Chunks,
    Count,
    Decision,
    Edge,
    FromChunks,
    Scores,
    describe_cut,
    floor_count,
    numbers_of,
)
from consomme.curate.keep.radix import Cut, find_cut

# Shapes: N samples.
Values = Callable[[Scores], NDArray[np.floating]]
"""Gives the number that ranks each sample."""


@dataclass(frozen=True, kw_only=True)
class ByRank:
    """A decision by rank."""

    label: str
    values: Values
    cut: Cut

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample whether it stays."""
        return self.cut.mask(self.values(scores), hash_N)

    def describe(self) -> dict[str, Any]:
        """Return the numbers of the cut."""
        return describe_cut(self.cut)

    def edges(self) -> tuple[Edge, ...]:
        """Return the cut."""
        return (Edge(label=self.label, values=self.values, cut=self.cut),)


def by_column(name: str) -> Values:
    """Rank by one column of numbers."""
    return lambda scores: numbers_of(scores, name)


def rank(chunks: Chunks, values: Values, count: Count, *, descending: bool) -> Cut:
    """Find the cut that keeps the first `count` samples; see `radix.find_cut`."""

    def walk() -> Iterable[tuple[NDArray[np.floating], NDArray[np.uint64]]]:
        for scores, hash_N in chunks():
            yield values(scores), hash_N

    return find_cut(walk, count, descending=descending)


class Ranking(FromChunks):
    """Base of policies that keep the first samples by one number, a column or made of columns."""

    column: str

    @property
    def descending(self) -> bool:
        """Tell whether the largest scores come first."""
        return False

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the one column that ranks."""
        return (self.column,)

    @property
    def label(self) -> str:
        """Name what ranks."""
        return self.column

    def values(self, scores: Scores) -> NDArray[np.floating]:
        """Return the number that ranks each sample."""
        return numbers_of(scores, self.column)

    def count(self, num_scored: int) -> int:
        """Say how many stay, of how many that have a score."""
        raise TypeError(f"{type(self).__name__} defines no count()")

    def decide(self, chunks: Chunks) -> Decision:
        """Find the exact cut in two walks, or up to six if the cut falls into a tie."""
        cut = rank(chunks, self.values, self.count, descending=self.descending)
        return ByRank(label=self.label, values=self.values, cut=cut)


@KEEP_POLICIES.register("lowest_fraction")
@dataclass(frozen=True, kw_only=True)
class LowestFraction(Ranking):
    """Keep the samples with the smallest scores: exactly `floor(fraction * n_scored)` of them.

    Source: arXiv 2409.04828 (POINTS), perplexity filter: lowest 20 %. Unlike the released script,
    ties are broken by the sample's hash and not by input order, and samples without a score are
    counted.
    """

    column: str = "perplexity"
    """Score column to rank by."""

    fraction: float = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    def __post_init__(self) -> None:
        """Check the fraction."""
        check_fraction(self.fraction)

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return floor_count(self.fraction, num_scored)


@KEEP_POLICIES.register("highest_fraction")
@dataclass(frozen=True, kw_only=True)
class HighestFraction(Ranking):
    """Keep the samples with the largest scores: exactly `floor(fraction * n_scored)` of them.

    For scores of which more is better, such as `image_gain`: what the picture adds to the caption's
    log-likelihood, so that a fluent caption of another picture does not pass.
    """

    column: str = "image_gain"
    """Score column to rank by."""

    fraction: float = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    def __post_init__(self) -> None:
        """Check the fraction."""
        check_fraction(self.fraction)

    @property
    def descending(self) -> bool:
        """Tell that the largest scores come first."""
        return True

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return floor_count(self.fraction, num_scored)


@KEEP_POLICIES.register("drop_highest_fraction")
@dataclass(frozen=True, kw_only=True)
class DropHighestFraction(Ranking):
    """Drop the samples with the largest scores: exactly `floor(fraction * n_scored)` of them.

    Source: OBELICS, arXiv 2306.16527, drops the documents of highest perplexity.
    """

    column: str = "perplexity"
    """Score column to rank by."""

    fraction: float = 0.1
    """Share of the scored samples to drop, in [0, 1]; the count is rounded down."""

    def __post_init__(self) -> None:
        """Check the fraction."""
        check_fraction(self.fraction)

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return num_scored - floor_count(self.fraction, num_scored)


@KEEP_POLICIES.register("lowest_count")
@dataclass(frozen=True, kw_only=True)
class LowestCount(Ranking):
    """Keep a number of samples, those with the smallest scores; all, if there are fewer."""

    samples: int
    """How many to keep."""

    column: str = "perplexity"
    """Score column to rank by."""

    def __post_init__(self) -> None:
        """Check the number."""
        check_count(self.samples)

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return min(self.samples, num_scored)


@KEEP_POLICIES.register("highest_count")
@dataclass(frozen=True, kw_only=True)
class HighestCount(Ranking):
    """Keep a number of samples, those with the largest scores; all, if there are fewer."""

    samples: int
    """How many to keep."""

    column: str = "image_gain"
    """Score column to rank by."""

    def __post_init__(self) -> None:
        """Check the number."""
        check_count(self.samples)

    @property
    def descending(self) -> bool:
        """Tell that the largest scores come first."""
        return True

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return min(self.samples, num_scored)


@dataclass(frozen=True, kw_only=True)
class ByLot:
    """A decision by seeded hashes."""

    cut: Cut
    seed: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample whether it stays."""
        del scores
        return self.cut.mask(np.zeros(len(hash_N), dtype=np.float32), mix_hash(hash_N, self.seed))

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says: no score has decided."""
        stats = {"cut": None, "tie_count": 0, "num_missing": 0}
        return {**stats, "num_scored": self.cut.num_scored}


def draw(chunks: Chunks, count: Count, seed: int) -> ByLot:
    """Draw exactly `count` of all samples by the hashes of their ids and a seed."""

    def walk() -> Iterable[tuple[NDArray[np.float32], NDArray[np.uint64]]]:
        for _, hash_N in chunks():
            yield np.zeros(len(hash_N), dtype=np.float32), mix_hash(hash_N, seed)

    return ByLot(cut=find_cut(walk, count), seed=seed)


class Lottery(FromChunks):
    """Base of policies that draw lots: which samples stay depends on their ids and the seed only.

    So two runs over the same samples in different shards keep the same ones.
    """

    seed: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Return no column: scores do not matter."""
        return ()

    def count(self, num_samples: int) -> int:
        """Say how many stay, of all."""
        raise TypeError(f"{type(self).__name__} defines no count()")

    def decide(self, chunks: Chunks) -> ByLot:
        """Find the exact cut of the seeded hashes."""
        return draw(chunks, self.count, self.seed)


@KEEP_POLICIES.register("random_fraction")
@dataclass(frozen=True, kw_only=True)
class RandomFraction(Lottery):
    """Keep a seeded random share, exactly `floor(fraction * n)`: the control for all others."""

    fraction: float = 0.2
    """Share of all samples to keep, in [0, 1]; the count is rounded down."""

    seed: int = 0
    """Another seed, another share."""

    def __post_init__(self) -> None:
        """Check the fraction."""
        check_fraction(self.fraction)

    def count(self, num_samples: int) -> int:
        """Say how many stay."""
        return floor_count(self.fraction, num_samples)


@KEEP_POLICIES.register("random_count")
@dataclass(frozen=True, kw_only=True)
class RandomCount(Lottery):
    """Keep a seeded random number of samples; all, if there are fewer."""

    samples: int
    """How many to keep."""

    seed: int = 0
    """Another seed, other samples."""

    def __post_init__(self) -> None:
        """Check the number."""
        check_count(self.samples)

    def count(self, num_samples: int) -> int:
        """Say how many stay."""
        return min(self.samples, num_samples)
