"""Keep policies with limits: bands of ranks, fixed thresholds, names, token budgets.

A missing value (NaN, an empty text) is within no limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.bounds import Fraction, NonNegativeInt
from consomme.base.checked import rule
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    Boundary,
    ChunkedPolicy,
    Chunks,
    Decision,
    Scores,
    describe_cut,
    floor_count,
    numbers_of,
    texts_of,
)
from consomme.curate.keep.radix import Cut, find_budget_cut, limit_cut
from consomme.curate.keep.ranking import RankedDecision, by_column, rank

# Shapes: N samples.


@dataclass(frozen=True, kw_only=True)
class _BandDecision:
    """Keeps what the upper cut keeps and the lower one does not."""

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

    def boundaries(self) -> tuple[Boundary, ...]:
        values = by_column(self.column)
        return tuple(
            Boundary(label=self.column, values=values, cut=cut, end=end)
            for end, cut in (("lower end", self.lower), ("upper end", self.upper))
        )


@KEEP_POLICIES.register("band")
@dataclass(frozen=True, kw_only=True)
class Band(ChunkedPolicy):
    """Keep a band of scores: neither the lowest nor the highest.

    Of `n` scored samples in ascending order, those from `floor(low * n)` to `floor(high * n)` are
    kept. Very predictable captions say little; very surprising ones are damaged or rare.
    """

    column: str = "perplexity"
    """Score column to rank by."""

    low: Fraction = 0.1
    """Quantile at which the band begins, in [0, 1]."""

    high: Fraction = 0.6
    """Quantile at which the band ends, in [0, 1]."""

    @rule
    def _low_below_high(self) -> Iterator[str]:
        if not self.low < self.high:
            yield f"band: found low {self.low}, high {self.high}; expected low < high"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column that ranks."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Find both cuts."""
        values = by_column(self.column)
        upper, lower = (
            rank(chunks, values, lambda n, q=q: floor_count(q, n), descending=False)  # type: ignore[misc]
            for q in (self.high, self.low)
        )
        return _BandDecision(column=self.column, upper=upper, lower=lower)


@dataclass(frozen=True, kw_only=True)
class _ThresholdDecision:
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

    def boundaries(self) -> tuple[Boundary, ...]:
        values = by_column(self.column)
        return tuple(
            Boundary(label=self.column, values=values, cut=limit_cut(limit, descending), end=end)
            for end, limit, descending in (("min", self.low, True), ("max", self.high, False))
            if limit is not None
        )


@KEEP_POLICIES.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(ChunkedPolicy):
    """Keep the samples whose value lies within fixed limits.

    Any numeric column: scores, `tags.num_words`, or the name of a view, which is 1 for samples in
    the view and 0 for others.
    """

    column: str = "perplexity"
    """Numeric column."""

    min: float | None = None
    """Smallest value that is kept; None sets no limit."""

    max: float | None = None
    """Largest value that is kept; None sets no limit."""

    @rule
    def _min_and_max(self) -> Iterator[str]:
        if self.min is None and self.max is None:
            yield "threshold: found neither min nor max, expected at least one of them"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield f"threshold: found min {self.min} above max {self.max}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Count samples without a value; the limits are given."""
        missing = total = 0
        for scores, hash_N in chunks():
            missing += int(np.isnan(numbers_of(scores, self.column)).sum())
            total += len(hash_N)
        return _ThresholdDecision(
            column=self.column,
            low=self.min,
            high=self.max,
            num_missing=missing,
            num_scored=total - missing,
        )


@dataclass(frozen=True, kw_only=True)
class _OneOfDecision:
    column: str
    values: frozenset[str]
    keep_listed: bool
    num_missing: int
    num_scored: int

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        del hash_N
        texts = texts_of(scores, self.column).tolist()
        listed_N = np.fromiter((text in self.values for text in texts), bool, len(texts))
        if self.keep_listed:
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
class OneOf(ChunkedPolicy):
    """Keep the samples whose text in a column is, or is not, in a list.

    A sample without a text is dropped in both cases, unless `values` lists the empty text.
    """

    column: str
    """Column of text, such as `tags.language` or `source`."""

    values: tuple[str, ...] = ()
    """Texts to keep, matched exactly; instead of `none_of`."""

    none_of: tuple[str, ...] = ()
    """Texts to drop, matched exactly; instead of `values`."""

    @rule
    def _one_list(self) -> Iterator[str]:
        if bool(self.values) == bool(self.none_of):
            found = "both" if self.values else "neither"
            yield (
                f"one_of: expected either values or none_of, found {found}; list the texts of"
                f" {self.column} that stay, or those that are dropped"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def decide(self, chunks: Chunks) -> Decision:
        """Count samples without a text; the list is given."""
        missing = total = 0
        for scores, hash_N in chunks():
            missing += int((texts_of(scores, self.column) == "").sum())
            total += len(hash_N)
        return _OneOfDecision(
            column=self.column,
            values=frozenset(self.values or self.none_of),
            keep_listed=bool(self.values),
            num_missing=missing,
            num_scored=total - missing,
        )


@KEEP_POLICIES.register("token_budget")
@dataclass(frozen=True, kw_only=True)
class TokenBudget(ChunkedPolicy):
    """Keep the best samples, in order of score, until their tokens fill a budget.

    A sample without a score, or without a number of tokens, is not kept.
    """

    tokens: NonNegativeInt
    """Maximum number of tokens."""

    column: str = "perplexity"
    """Score column to rank by."""

    highest: bool = False
    """Begin with the largest scores."""

    weight: str = "num_tokens"
    """Column with the number of tokens of a sample."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column that ranks and the one that counts."""
        return (self.column, self.weight)

    def decide(self, chunks: Chunks) -> Decision:
        """Find the exact cut."""

        def weighted_chunks() -> Iterable[Any]:
            for scores, hash_N in chunks():
                # A missing weight would make every sum of weights missing.
                weight_N = np.nan_to_num(numbers_of(scores, self.weight), nan=0.0)
                yield self._values(scores), hash_N, weight_N

        cut = find_budget_cut(weighted_chunks, self.tokens, descending=self.highest)
        return RankedDecision(label=self.column, values=self._values, cut=cut)

    def _values(self, scores: Scores) -> NDArray[np.floating]:
        """Return the score of each sample that has a weight."""
        values_N = numbers_of(scores, self.column)
        weight_N = numbers_of(scores, self.weight)
        return np.where(np.isnan(weight_N), np.float32(np.nan), values_N)
