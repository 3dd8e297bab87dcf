"""A keep policy that ranks by what several scorers think on average.

The one decision: columns are averaged sample by sample in float64, each as it is or as its
logarithm, and the mean is then a score like any other. Perplexities are averaged as logarithms:
that is the mean of the scorers' nats per token, while a plain mean of perplexities is the opinion
of whoever was most surprised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.curate.checks import check_fraction
from consomme.curate.keep.policy import KEEP_POLICIES, Scores, floor_count, numbers_of
from consomme.curate.keep.ranking import Ranking

# Shapes: N samples.


@dataclass(frozen=True, kw_only=True)
class Term:
    """One column of a mean."""

    column: str
    """Column of numbers; `large.perplexity` is that of the run `large` of `beside`."""

    weight: float = 1.0
    """How much it counts; the weights are divided by the sum of their sizes. A negative one turns a
    score around of which more is better."""

    log: bool = False
    """Whether to take the natural logarithm: for perplexities."""


@KEEP_POLICIES.register("mean_fraction")
@dataclass(frozen=True, kw_only=True)
class MeanFraction(Ranking):
    """Keep the samples with the smallest mean of several scores: `floor(fraction * n_scored)`.

    A sample that lacks one of the scores has no mean, and is never kept.
    """

    terms: tuple[Term, ...]
    """What is averaged: columns of one score run or, with `beside`, of several."""

    fraction: float = 0.2
    """Share of the scored samples to keep, in [0, 1]; the count is rounded down."""

    highest: bool = False
    """Keep the largest means instead."""

    def __post_init__(self) -> None:
        """Check terms and fraction."""
        check_fraction(self.fraction)
        if not self.terms:
            raise RecipeError("terms: found none, expected at least one {column: …}")
        for number, term in enumerate(self.terms):
            if not math.isfinite(term.weight) or term.weight == 0:
                raise RecipeError(
                    f"terms[{number}].weight: found {term.weight}, expected a number other than 0"
                )

    @property
    def descending(self) -> bool:
        """Tell whether the largest means come first."""
        return self.highest

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what is averaged."""
        return tuple(dict.fromkeys(term.column for term in self.terms))

    @property
    def label(self) -> str:
        """Name what is averaged."""
        return "mean of " + ", ".join(self.columns)

    def count(self, num_scored: int) -> int:
        """Say how many stay."""
        return floor_count(self.fraction, num_scored)

    def values(self, scores: Scores) -> NDArray[np.floating]:
        """Return the mean of each sample.

        Raises:
            DataError: A logarithm is wanted of what is not positive.
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
