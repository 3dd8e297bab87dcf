"""Compare answers with what is right, and report accuracies with a confidence interval.

No accuracy is reported without its interval: on 500 questions, two accuracies that are three points
apart are usually not distinguishable.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


def normalise(text: str) -> str:
    """Normalise an answer for comparison.

    Removes differences of case, compatibility forms of characters and white space, and punctuation
    around the text; punctuation inside it (`3.5`, `left-hand`) is kept.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", folded)


def exact_match(prediction: str, answer: str | Sequence[str]) -> bool:
    """Whether a prediction equals the answer, or one of several accepted answers, normalised.

    An empty prediction matches only an answer that consists of punctuation.
    """
    answers = [answer] if isinstance(answer, str) else answer
    return normalise(prediction) in {normalise(a) for a in answers}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of correct answers with its 95 % confidence interval."""

    num_correct: int
    """Number of correct answers."""

    num_total: int
    """Number of questions."""

    low: float
    """Lower end of the interval, in [0, 1]."""

    high: float
    """Upper end of the interval, in [0, 1]."""

    @property
    def value(self) -> float:
        """The share of correct answers."""
        return self.num_correct / self.num_total


def accuracy(correct: Sequence[bool] | NDArray[np.bool_]) -> Accuracy:
    """Count correct answers and compute the confidence interval of their share.

    The interval is Wilson's score interval, which stays inside [0, 1] and is accurate near 0 and 1
    and for few questions, where the normal approximation is not.

    Raises:
        DataError: There is no question.
    """
    total, right = len(correct), int(np.sum(correct))
    if total == 0:
        raise DataError("no question was answered: an accuracy needs at least one")
    share, z2 = right / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    half = Z_95 * spread
    return Accuracy(
        num_correct=right,
        num_total=total,
        low=max(centre - half, 0.0),
        high=min(centre + half, 1.0),
    )


NUM_RESAMPLES = 2000


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the bootstrap; the same values give the same interval.

    Raises:
        DataError: There is no value.
    """
    if not len(values):
        raise DataError("no question was answered: a mean needs at least one")
    value_N = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    means = [
        value_N[rng.integers(0, len(value_N), len(value_N))].mean() for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
