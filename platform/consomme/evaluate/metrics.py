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
    """Return a text without differences that do not matter in an answer.

    Case, compatibility forms of characters, runs of white space, and punctuation and spaces around
    the text go; punctuation inside (`3.5`, `left-hand`) stays.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", folded)


def exact_match(prediction: str, answer: str | Sequence[str]) -> bool:
    """Say whether a prediction is the answer, or one of several accepted answers.

    An empty prediction never is, unless the answer is nothing but punctuation too.
    """
    answers = [answer] if isinstance(answer, str) else answer
    return normalise(prediction) in {normalise(a) for a in answers}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of right answers with its 95 % interval."""

    num_correct: int
    """Right answers."""

    num_total: int
    """Questions."""

    low: float
    """Lower end of the interval, in [0, 1]."""

    high: float
    """Upper end of the interval, in [0, 1]."""

    @property
    def value(self) -> float:
        """Return the share itself."""
        return self.num_correct / self.num_total


def accuracy(correct: Sequence[bool] | NDArray[np.bool_]) -> Accuracy:
    """Count right answers and say how sure the share is.

    The interval is Wilson's score interval, which stays inside [0, 1] and is right near its ends
    and for few questions, where the usual plus-minus is not.

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
