"""A keep policy that ranks samples by a weighted mean of several scores.

Columns are averaged per sample in float64, each as it is or as its logarithm. Perplexities should
be averaged as logarithms, which gives the mean of the scorers' nats per token; a plain mean of
perplexities is dominated by the scorer with the highest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.bounds import Fraction
from consomme.base.checked import Checked, rule
from consomme.base.errors import DataError
from consomme.curate.keep.policy import KEEP_POLICIES, Scores, floor_count, numbers_of
from consomme.curate.keep.ranking import RankingPolicy

# Shapes: N samples.


@dataclass(frozen=True, kw_only=True)
class Term(Checked):
    """One column of a mean."""

    column: str
    """Numeric column; `large.perplexity` is read from the run `large` of `columns_from`."""

    weight: float = 1.0
    """Weight in the mean; weights are divided by the sum of their absolute values. A negative one
    inverts a score for which higher is better."""

    log: bool = False
    """Take the natural logarithm; for perplexities."""

    @rule
    def _counts(self) -> Iterator[str]:
        if self.weight == 0:
            yield f"weight: found {self.weight}, expected a number other than 0"


@KEEP_POLICIES.register("mean_fraction")
@dataclass(frozen=True, kw_only=True)
class MeanFraction(RankingPolicy):
    """Keep the samples with the smallest mean of several scores: `floor(fraction * n_scored)`.

    A sample that lacks one of the scores has no mean and is never kept.
    """

    terms: tuple[Term, ...]
    """Columns to average, of one score run or, with `columns_from`, of several."""

    fraction: Fraction = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    highest: bool = False
    """Keep the largest means instead of the smallest."""

    @rule
    def _has_terms(self) -> Iterator[str]:
        if not self.terms:
            yield "terms: found none, expected at least one {column: …}"

    @property
    def descending(self) -> bool:
        """Whether the largest means come first."""
        return self.highest

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns to average."""
        return tuple(dict.fromkeys(term.column for term in self.terms))

    @property
    def label(self) -> str:
        """Name of the mean, for reports."""
        return "mean of " + ", ".join(self.columns)

    def count(self, num_scored: int) -> int:
        """Return how many samples to keep."""
        return floor_count(self.fraction, num_scored)

    def values(self, scores: Scores) -> NDArray[np.floating]:
        """Return the mean of each sample.

        Raises:
            DataError: The logarithm of a value that is not positive is requested.
        """
        total_N: NDArray[np.float64] | None = None
        for term in self.terms:
            value_N = numbers_of(scores, term.column).astype(np.float64)
            if term.log:
                if (value_N <= 0).any():
                    raise DataError(
                        f"{term.column}: found {value_N[value_N <= 0][0]:.4g}, and the logarithm"
                        " takes positive numbers only; leave out log: true of this term"
                    )
                value_N = np.log(value_N)
            value_N *= term.weight
            total_N = value_N if total_N is None else total_N + value_N
        assert total_N is not None
        mean_N: NDArray[np.floating] = total_N / sum(abs(term.weight) for term in self.terms)
        return mean_N.astype(np.float32)
