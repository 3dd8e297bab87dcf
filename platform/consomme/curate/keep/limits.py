"""Keep policies with limits: bands of ranks, fixed thresholds, names, budgets of tokens.

The one decision: what is missing (NaN, an empty text) is within no limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import RecipeError
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    Chunks,
    Decision,
    Edge,
    FromChunks,
    Scores,
    describe_cut,
    floor_count,
    numbers_of,
    texts_of,
)
from consomme.curate.keep.radix import Cut, find_budget_cut, limit_cut
from consomme.curate.keep.ranking import ByRank, by_column, rank

# Shapes: N samples.


@dataclass(frozen=True, kw_only=True)
class _Between:
    """Kept by the upper cut and not by the lower one."""

    column: str
    upper: Cut
    lower: Cut

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        values_N = numbers_of(scores, self.column)
        kept: NDArray[np.bool_] = self.upper.mask(values_N, hash_N) & ~self.lower.mask(
            values_N, hash_N
        )
        return kept

    def describe(self) -> dict[str, Any]:
        return {**describe_cut(self.upper), "lower_cut": self.lower.value}

    def edges(self) -> tuple[Edge, ...]:
        values = by_column(self.column)
        return tuple(
            Edge(label=self.column, values=values, cut=cut, end=end)
            for end, cut in (("lower end", self.lower), ("upper end", self.upper))
        )


@KEEP_POLICIES.register("band")
@dataclass(frozen=True, kw_only=True)
class Band(FromChunks):
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
        values = by_column(self.column)
        upper, lower = (
            rank(chunks, values, lambda n, q=q: floor_count(q, n), descending=False)  # type: ignore[misc]
            for q in (self.high, self.low)
        )
        return _Between(column=self.column, upper=upper, lower=lower)


@dataclass(frozen=True, kw_only=True)
class _Within:
    column: str
    low: float | None
    high: float | None
    num_missing: int
    num_scored: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        del hash_N
        values_N = numbers_of(scores, self.column)
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        kept: NDArray[np.bool_] = (values_N >= low) & (values_N <= high)
        return kept

    def describe(self) -> dict[str, Any]:
        return {
            "cut": self.low if self.high is None else self.high,
            "tie_count": 0,
            "num_scored": self.num_scored,
            "num_missing": self.num_missing,
        }

    def edges(self) -> tuple[Edge, ...]:
        values = by_column(self.column)
        return tuple(
            Edge(label=self.column, values=values, cut=limit_cut(limit, descending), end=end)
            for end, limit, descending in (("min", self.low, True), ("max", self.high, False))
            if limit is not None
        )


@KEEP_POLICIES.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(FromChunks):
    """Keep the samples whose number lies within fixed limits, whatever the others' are.

    Any column of numbers: scores, `tags.num_words`, or the name of a view, which is 1 in it and 0
    outside.
    """

    column: str = "perplexity"
    """Column of numbers."""

    min: float | None = None
    """Smallest that stays; None sets no limit."""

    max: float | None = None
    """Largest that stays; None sets no limit."""

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
            missing += int(np.isnan(numbers_of(scores, self.column)).sum())
            total += len(hash_N)
        return _Within(
            column=self.column,
            low=self.min,
            high=self.max,
            num_missing=missing,
            num_scored=total - missing,
        )


@dataclass(frozen=True, kw_only=True)
class _Named:
    column: str
    values: frozenset[str]
    is_wanted: bool
    num_missing: int
    num_scored: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        del hash_N
        texts = texts_of(scores, self.column).tolist()
        listed_N = np.fromiter((text in self.values for text in texts), bool, len(texts))
        if self.is_wanted:
            return listed_N
        has_text_N = np.fromiter((text != "" for text in texts), bool, len(texts))
        kept: NDArray[np.bool_] = has_text_N & ~listed_N
        return kept

    def describe(self) -> dict[str, Any]:
        return {
            "cut": None,
            "tie_count": 0,
            "num_scored": self.num_scored,
            "num_missing": self.num_missing,
        }


@KEEP_POLICIES.register("one_of")
@dataclass(frozen=True, kw_only=True)
class OneOf(FromChunks):
    """Keep the samples whose text in a column is one of some, or none of some.

    A sample without a text is dropped either way, unless `values` lists the empty text.
    """

    column: str
    """Column of text, such as `tags.language` or `source`."""

    values: tuple[str, ...] = ()
    """Texts that stay, whole and exact; instead of `none_of`."""

    none_of: tuple[str, ...] = ()
    """Texts that are dropped, whole and exact; instead of `values`."""

    def __post_init__(self) -> None:
        """Check that there is one list."""
        if bool(self.values) == bool(self.none_of):
            found = "both" if self.values else "neither"
            raise RecipeError(
                f"one_of: expected either values or none_of, found {found}; list the texts of"
                f" {self.column} that stay, or those that are dropped"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the one column."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Count what has no text; there is nothing to find."""
        missing = total = 0
        for scores, hash_N in chunks():
            missing += int((texts_of(scores, self.column) == "").sum())
            total += len(hash_N)
        return _Named(
            column=self.column,
            values=frozenset(self.values or self.none_of),
            is_wanted=bool(self.values),
            num_missing=missing,
            num_scored=total - missing,
        )


@KEEP_POLICIES.register("token_budget")
@dataclass(frozen=True, kw_only=True)
class TokenBudget(FromChunks):
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
                yield numbers_of(scores, self.column), hash_N, numbers_of(scores, self.weight)

        cut = find_budget_cut(walk, self.tokens, descending=self.highest)
        return ByRank(label=self.column, values=by_column(self.column), cut=cut)
