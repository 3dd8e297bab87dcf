"""Keep policies beyond a single rank: bands, thresholds, token budgets, strata, joint rules.

Here the registry is whole: recipes name this module. Each policy is exact, global and the same
however the samples are cut into parts, like those of `keep`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.base.schema import strategy
from consomme.curate.keep import (
    KEEP_POLICIES,
    ByScore,
    Chunks,
    Decision,
    KeepPolicy,
    Kept,
    Scores,
    call,
    column_of,
    floor_count,
    rank,
)
from consomme.curate.radix import Cut, find_budget_cut

__all__ = ["KEEP_POLICIES"]

# Shapes: N samples.
_REGISTRY = "consomme.curate.policies:KEEP_POLICIES"
MAX_STRATA = 1000
"""More strata than this are a mistake, such as a column of ids."""


@dataclass(frozen=True, kw_only=True)
class _Between:
    """Kept by the upper cut and not by the lower one."""

    column: str
    upper: Cut
    lower: Cut

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        values_N = column_of(scores, self.column)
        kept: NDArray[np.bool_] = self.upper.mask(values_N, hash_N) & ~self.lower.mask(
            values_N, hash_N
        )
        return kept

    def describe(self) -> dict[str, Any]:
        return {
            "cut": self.upper.value,
            "lower_cut": self.lower.value,
            "tie_count": self.upper.tie_count,
            "num_scored": self.upper.num_scored,
            "num_missing": self.upper.num_missing,
        }


@KEEP_POLICIES.register("band")
@dataclass(frozen=True, kw_only=True)
class Band:
    """Keep a band of scores: neither the lowest nor the highest.

    Of `n` scored samples in order stay those from `floor(low * n)` to `floor(high * n)`. Very
    predictable captions say little, very surprising ones are damaged or rare.
    """

    column: str = "perplexity"
    """Score column to rank by."""

    low: float = 0.1
    """Quantile where the band begins, in [0, 1]."""

    high: float = 0.6
    """Quantile where it ends."""

    def __post_init__(self) -> None:
        """Check the quantiles."""
        if not 0 <= self.low < self.high <= 1:
            raise RecipeError(
                f"band: found low {self.low}, high {self.high}; expected 0 ≤ low < high ≤ 1"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the one column that ranks."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Find both cuts."""
        upper, lower = (
            rank(chunks, self.column, lambda n, q=q: floor_count(q, n), descending=False)  # type: ignore[misc]
            for q in (self.high, self.low)
        )
        return _Between(column=self.column, upper=upper, lower=lower)

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)


@dataclass(frozen=True, kw_only=True)
class _Within:
    column: str
    low: float
    high: float
    num_missing: int
    num_scored: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        values_N = column_of(scores, self.column)
        kept: NDArray[np.bool_] = (values_N >= self.low) & (values_N <= self.high)
        return kept

    def describe(self) -> dict[str, Any]:
        return {
            "cut": self.high if math.isfinite(self.high) else self.low,
            "tie_count": 0,
            "num_scored": self.num_scored,
            "num_missing": self.num_missing,
        }


@KEEP_POLICIES.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Keep the samples whose score lies within fixed limits, whatever the others score."""

    column: str = "perplexity"
    """Score column."""

    min: float | None = None
    """Smallest score that stays; None sets no limit."""

    max: float | None = None
    """Largest score that stays; None sets no limit."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.min is None and self.max is None:
            raise RecipeError("threshold: found neither min nor max, expected at least one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise RecipeError(f"threshold: found min {self.min} above max {self.max}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the one column."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Count what has no score; there is nothing to find."""
        missing = total = 0
        for scores, hash_N in chunks():
            missing += int(np.isnan(column_of(scores, self.column)).sum())
            total += len(hash_N)
        return _Within(
            column=self.column,
            low=-math.inf if self.min is None else self.min,
            high=math.inf if self.max is None else self.max,
            num_missing=missing,
            num_scored=total - missing,
        )

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)


@KEEP_POLICIES.register("token_budget")
@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """Keep the best samples until their tokens fill a budget: as many as fit, in order of score."""

    tokens: int
    """The budget."""

    column: str = "perplexity"
    """Score column to rank by."""

    highest: bool = False
    """Begin with the largest scores."""

    weight: str = "num_tokens"
    """Column that says how many tokens a sample costs."""

    def __post_init__(self) -> None:
        """Check the budget."""
        if self.tokens < 0:
            raise RecipeError(f"tokens: found {self.tokens}, expected a number of tokens")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column that ranks and the one that counts."""
        return (self.column, self.weight)

    def decide(self, chunks: Chunks) -> Decision:
        """Find the exact cut."""

        def walk() -> Iterable[Any]:
            for scores, hash_N in chunks():
                yield column_of(scores, self.column), hash_N, column_of(scores, self.weight)

        cut = find_budget_cut(walk, self.tokens, descending=self.highest)
        return ByScore(cut=cut, column=self.column)

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)


@dataclass(frozen=True, kw_only=True)
class _Strata:
    by: str
    edges: tuple[float, ...]
    decisions: Mapping[Any, Decision]

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        kept_N = np.zeros(len(hash_N), dtype=bool)
        stratum_N = strata_of(scores, self.by, self.edges)
        for name in np.unique(stratum_N):
            part_N = stratum_N == name
            kept_N[part_N] = self.decisions[name].mask(_some(scores, part_N), hash_N[part_N])
        return kept_N

    def describe(self) -> dict[str, Any]:
        told = {str(name): decision.describe() for name, decision in self.decisions.items()}
        return {
            "strata": told,
            "num_scored": sum(one.get("num_scored", 0) for one in told.values()),
            "num_missing": sum(one.get("num_missing", 0) for one in told.values()),
        }


@KEEP_POLICIES.register("per_stratum")
@dataclass(frozen=True, kw_only=True)
class PerStratum:
    """Let a policy decide in each stratum by itself: the best fifth of every source, not of all.

    Without it a filter that prefers one kind of data takes it all from there.
    """

    by: str = "source"
    """Column of names, such as `source`, or of numbers, cut at `edges`."""

    edges: tuple[float, ...] = ()
    """Where a column of numbers is cut into strata: `[8, 32]` makes three of `num_tokens`."""

    keep: dict[str, Any] = strategy(_REGISTRY, default={"name": "lowest_fraction"})
    """Which samples of a stratum stay."""

    def __post_init__(self) -> None:
        """Check the edges, and the policy within."""
        if list(self.edges) != sorted(set(self.edges)):
            raise RecipeError(f"edges: found {list(self.edges)}, expected ascending numbers")
        KEEP_POLICIES.build(self.keep, "keep")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of the strata and those of the policy within."""
        return (self.by, *KEEP_POLICIES.build(self.keep, "keep").columns)

    def decide(self, chunks: Chunks) -> Decision:
        """Find the strata, then decide in each: a few walks per stratum."""
        policy = KEEP_POLICIES.build(self.keep, "keep")
        names: set[Any] = set()
        for scores, _ in chunks():
            names.update(np.unique(strata_of(scores, self.by, self.edges)).tolist())
            if len(names) > MAX_STRATA:
                raise DataError(
                    f"per_stratum: {self.by!r} has more than {MAX_STRATA} different values, such as"
                    f" {sorted(names)[0]!r}; take a column of few, or cut numbers at edges"
                )
        return _Strata(
            by=self.by,
            edges=self.edges,
            decisions={name: policy.decide(self._only(chunks, name)) for name in sorted(names)},
        )

    def _only(self, chunks: Chunks, name: object) -> Chunks:
        def walk() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
            for scores, hash_N in chunks():
                part_N = strata_of(scores, self.by, self.edges) == name
                yield _some(scores, part_N), hash_N[part_N]

        return walk

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)


def strata_of(scores: Scores, by: str, edges: tuple[float, ...]) -> NDArray[Any]:
    """Name the stratum of each sample."""
    values_N: NDArray[Any] = column_of(scores, by)
    if edges:
        return np.digitize(values_N, edges)
    if values_N.dtype.kind == "f":
        raise DataError(
            f"per_stratum: {by!r} is a column of numbers; say where to cut it, as in edges: [8, 32]"
        )
    return values_N


def _some(scores: Scores, part_N: NDArray[np.bool_]) -> Scores:
    return {name: values_N[part_N] for name, values_N in scores.items()}


@dataclass(frozen=True, kw_only=True)
class _Joint:
    decisions: tuple[Decision, ...]
    all_must: bool

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        masks = [decision.mask(scores, hash_N) for decision in self.decisions]
        join = np.logical_and if self.all_must else np.logical_or
        kept: NDArray[np.bool_] = join.reduce(masks)
        return kept

    def describe(self) -> dict[str, Any]:
        return {"parts": [decision.describe() for decision in self.decisions]}


def _build(nodes: tuple[dict[str, Any], ...]) -> list[KeepPolicy]:
    if not nodes:
        raise RecipeError("policies: found none, expected at least one {name: …}")
    return [KEEP_POLICIES.build(node, f"policies.{k}") for k, node in enumerate(nodes)]


def _columns(nodes: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for policy in _build(nodes) for name in policy.columns))


class _JointPolicy:
    """What all_of and any_of have in common."""

    policies: tuple[dict[str, Any], ...]
    all_must: ClassVar[bool]

    def __post_init__(self) -> None:
        """Check the policies."""
        _build(self.policies)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of all of them."""
        return _columns(self.policies)

    def decide(self, chunks: Chunks) -> Decision:
        """Let each decide."""
        decisions = tuple(policy.decide(chunks) for policy in _build(self.policies))
        return _Joint(decisions=decisions, all_must=self.all_must)

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)


@KEEP_POLICIES.register("all_of")
@dataclass(frozen=True, kw_only=True)
class AllOf(_JointPolicy):
    """Keep what every one of some policies keeps, each deciding about all samples."""

    all_must: ClassVar[bool] = True

    policies: tuple[dict[str, Any], ...] = strategy(_REGISTRY)
    """The policies."""


@KEEP_POLICIES.register("any_of")
@dataclass(frozen=True, kw_only=True)
class AnyOf(_JointPolicy):
    """Keep what at least one of some policies keeps, each deciding about all samples."""

    all_must: ClassVar[bool] = False

    policies: tuple[dict[str, Any], ...] = strategy(_REGISTRY)
    """The policies."""
