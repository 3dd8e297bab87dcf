"""Keep policies: which samples stay, given their scores.

The one decision a policy makes is global and exact: the same set whatever the order of the samples
and however they are cut into units and workers. Each policy is asked in one of two ways: with all
scores in arrays (`policy(scores, hash_N)`), or with a function that walks over them in chunks
(`policy.decide`), which needs a few megabytes for a hundred million samples.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.base.registry import Registry
from consomme.curate.radix import Cut, find_cut

# Shapes: N samples.
Scores = Mapping[str, NDArray[np.floating]]
"""Columns of scores by name, aligned with each other."""

Count = Callable[[int], int]
"""How many to keep, of how many that have a score."""

Chunks = Callable[[], Iterable[tuple[Scores, NDArray[np.uint64]]]]
"""Starts a fresh walk over (columns, hashes) of all samples."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a policy decided about samples held in arrays."""

    mask_N: NDArray[np.bool_]  # noqa: N815
    """True where the sample stays."""

    cut: float | None
    """Last kept score; None if nothing is kept or no score decides."""

    tie_count: int
    """Samples whose score equals the cut; which of them stay is decided by their hash."""

    num_scored: int
    """Samples the fraction is taken of."""

    num_missing: int
    """Samples without a score (NaN): never kept."""


class Decision(Protocol):
    """A policy's answer for a whole run, to be applied part by part."""

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample of a part whether it stays."""

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of it: the cut, ties, samples without a score."""


class KeepPolicy(Protocol):
    """What the registry promises about every keep policy."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the score columns the policy reads."""

    def decide(self, chunks: Chunks) -> Decision:
        """Look at all samples, a few times, and decide."""

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""


KEEP_POLICIES: Registry[KeepPolicy] = Registry("keep policy", "consomme/curate/keep.py")


def hash_ids(sample_ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return a stable 64-bit hash per sample id: the same on every machine and in every version.

    Pass ids that are unique over the whole run: prefix the source where sources may share ids.
    """
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in sample_ids)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class ByScore:
    """A decision by the rank of one column."""

    cut: Cut
    column: str

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample whether it stays."""
        return self.cut.mask(column_of(scores, self.column), hash_N)

    def describe(self) -> dict[str, Any]:
        """Return the numbers of the cut."""
        return _describe(self.cut)


def _describe(cut: Cut) -> dict[str, Any]:
    return {
        "cut": cut.value,
        "tie_count": cut.tie_count,
        "num_scored": cut.num_scored,
        "num_missing": cut.num_missing,
    }


def rank(chunks: Chunks, column: str, count: Count, *, descending: bool) -> Cut:
    """Find the cut that keeps the first `count` samples by a column; see `radix.find_cut`."""

    def walk() -> Iterable[tuple[NDArray[np.floating], NDArray[np.uint64]]]:
        for scores, hash_N in chunks():
            yield column_of(scores, column), hash_N

    return find_cut(walk, count, descending=descending)


class Ranking:
    """Base of policies that keep the first samples by one column."""

    column: str
    descending: ClassVar[bool] = False

    def count(self, num_scored: int) -> int:
        """Say how many stay, of how many that have a score."""
        raise TypeError(f"{type(self).__name__} defines no count()")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the one column that ranks."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Find the exact cut in two walks, or up to six if the cut falls into a tie."""
        cut = rank(chunks, self.column, self.count, descending=self.descending)
        return ByScore(cut=cut, column=self.column)

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)


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

    descending: ClassVar[bool] = True

    column: str = "image_gain"
    """Score column to rank by."""

    fraction: float = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    def __post_init__(self) -> None:
        """Check the fraction."""
        check_fraction(self.fraction)

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

    descending: ClassVar[bool] = True

    samples: int
    """How many to keep."""

    column: str = "image_gain"
    """Score column to rank by."""

    def __post_init__(self) -> None:
        """Check the number."""
        check_count(self.samples)

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return min(self.samples, num_scored)


@dataclass(frozen=True, kw_only=True)
class _ByHash:
    cut: Cut
    seed: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return self.cut.mask(np.zeros(len(hash_N), dtype=np.float32), mix_hash(hash_N, self.seed))

    def describe(self) -> dict[str, Any]:
        return {
            "cut": None,
            "tie_count": 0,
            "num_scored": self.cut.num_scored,
            "num_missing": 0,
        }


@KEEP_POLICIES.register("random_fraction")
@dataclass(frozen=True, kw_only=True)
class RandomFraction:
    """Keep a seeded random share, exactly `floor(fraction * n)`: the control for all others.

    Which samples stay depends on their ids and the seed only, so two runs over the same samples in
    different shards keep the same ones.
    """

    fraction: float = 0.2
    """Share of all samples to keep, in [0, 1]; the count is rounded down."""

    seed: int = 0
    """Another seed, another share."""

    def __post_init__(self) -> None:
        """Check the fraction."""
        check_fraction(self.fraction)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return no column: scores do not matter."""
        return ()

    def decide(self, chunks: Chunks) -> Decision:
        """Find the exact cut of the seeded hashes."""

        def walk() -> Iterable[tuple[NDArray[np.float32], NDArray[np.uint64]]]:
            for _, hash_N in chunks():
                yield np.zeros(len(hash_N), dtype=np.float32), mix_hash(hash_N, self.seed)

        return _ByHash(cut=find_cut(walk, lambda n: floor_count(self.fraction, n)), seed=self.seed)

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays; `cut` is None, since no score decides."""
        return call(self, scores, hash_N)


def floor_count(fraction: float, total: int) -> int:
    """Return `floor(fraction * total)` of the decimal number the recipe says.

    In binary 0.29 * 100 is 28.999…, and a sample would be lost to rounding.
    """
    return int(Decimal(repr(fraction)) * total)


def mix_hash(hash_N: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return other, equally good 64-bit hashes for a seed (a bijection: no new collisions).

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    mixed = hash_N + np.uint64((seed * 0x9E3779B97F4A7C15) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def call(policy: KeepPolicy, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
    """Decide about samples held in arrays, by a policy that walks over chunks."""
    decision = policy.decide(lambda: [(scores, hash_N)])
    told = decision.describe()
    return Kept(
        mask_N=decision.mask(scores, hash_N),
        cut=told.get("cut"),
        tie_count=told.get("tie_count", 0),
        num_scored=told.get("num_scored", len(hash_N)),
        num_missing=told.get("num_missing", 0),
    )


def column_of(scores: Scores, column: str) -> NDArray[np.floating]:
    """Return a column of scores.

    Raises:
        DataError: There is none of this name.
    """
    if column not in scores:
        raise DataError(
            f"no score column {column!r}; the score run has {', '.join(sorted(scores))}"
        )
    return scores[column]


def check_fraction(fraction: float) -> None:
    """Refuse what is no share.

    Raises:
        RecipeError: It is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise RecipeError(f"fraction: found {fraction}, expected a share in [0, 1], such as 0.2")


def check_count(samples: int) -> None:
    """Refuse what is no number of samples.

    Raises:
        RecipeError: It is negative.
    """
    if samples < 0:
        raise RecipeError(f"samples: found {samples}, expected a number of samples, 0 or more")
