"""Turns answers and claims into figures with their uncertainty.

The one decision: no accuracy is given without an interval, and two models on the same questions are
compared question by question. On 500 questions two accuracies three points apart are usually the
same; the paired interval says so, or finds the difference that two separate intervals would hide.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError

# Shapes: N questions or captions, R resamples.
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


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Second minus first, on the same questions."""

    difference: float
    """Mean of second minus mean of first."""

    low: float
    """Lower end of its 95 % interval."""

    high: float
    """Upper end of its 95 % interval."""

    p_value: float | None
    """Chance of a difference this large between equals; None where only an interval is computed."""

    @property
    def is_certain(self) -> bool:
        """Say whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_accuracy(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """Compare two models' right answers to the same questions.

    Only questions on which they disagree carry information. The interval is the adjusted Wald
    interval of Agresti and Min (2005), the p-value McNemar's exact test.

    Raises:
        DataError: Different numbers of questions, or none.
    """
    first_N, second_N = _pair(first, second)
    gained = int((second_N > first_N).sum())
    lost = int((first_N > second_N).sum())
    total = len(first_N) + 2
    centre = (gained - lost) / total
    half = Z_95 * math.sqrt(max(gained + lost + 1 - (gained - lost) ** 2 / total, 0.0)) / total
    return PairedDifference(
        difference=(gained - lost) / len(first_N),
        low=centre - half,
        high=centre + half,
        p_value=_mcnemar(gained, lost),
    )


def paired_mean(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, num_resamples: int = 2000
) -> PairedDifference:
    """Compare two models' figures for the same samples, such as true claims per caption.

    The interval is a percentile bootstrap over samples, drawn with a seed.

    Raises:
        DataError: Different numbers of samples, or none.
    """
    first_N, second_N = _pair(first, second)
    change_N = second_N - first_N
    rng = np.random.default_rng(seed)
    means_R = np.array(
        [
            change_N[rng.integers(0, len(change_N), len(change_N))].mean()
            for _ in range(num_resamples)
        ]
    )
    low, high = np.quantile(means_R, [0.025, 0.975])
    return PairedDifference(
        difference=float(change_N.mean()), low=float(low), high=float(high), p_value=None
    )


@dataclass(frozen=True, kw_only=True)
class ClaimSummary:
    """What captions say about their pictures, judged claim by claim."""

    num_captions: int
    """Captions judged."""

    true_per_caption: float
    """Mean number of true claims."""

    false_per_caption: float
    """Mean number of false claims."""

    missing_per_caption: float
    """Mean number of facts not claimed."""

    precision: float
    """True claims among all claims made, over all captions; NaN if none was made."""

    recall: float
    """True claims among all facts, over all captions; NaN if there are none."""

    faithful_fraction: float
    """Captions with at least one true and no false claim, in [0, 1]."""


def aggregate_claims(
    true: Sequence[int], false: Sequence[int], missing: Sequence[int]
) -> ClaimSummary:
    """Add up claims over captions; sums are divided last, so long captions count for what they say.

    Raises:
        DataError: The three lists differ in length, or are empty.
    """
    if not len(true) == len(false) == len(missing) or not len(true):
        found = f"{len(true)} true, {len(false)} false and {len(missing)} missing counts"
        raise DataError(f"{found}: give one of each per caption, for at least one caption")
    true_N, false_N, missing_N = (np.asarray(c, dtype=np.int64) for c in (true, false, missing))
    return ClaimSummary(
        num_captions=len(true_N),
        true_per_caption=float(true_N.mean()),
        false_per_caption=float(false_N.mean()),
        missing_per_caption=float(missing_N.mean()),
        precision=_ratio(int(true_N.sum()), int(false_N.sum())),
        recall=_ratio(int(true_N.sum()), int(missing_N.sum())),
        faithful_fraction=float(((true_N > 0) & (false_N == 0)).mean()),
    )


def _pair(
    first: Sequence[float], second: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(first) != len(second) or not len(first):
        raise DataError(
            f"{len(first)} results against {len(second)}: a paired comparison needs the same "
            "samples, in the same order, at least one"
        )
    return np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)


def _mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact binomial p-value of so uneven a split."""
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    # Logarithms: two to the minus total leaves the range of floats from about 1,000 questions on.
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(fewer + 1)
    ]
    tail = math.fsum(math.exp(log - total * math.log(2)) for log in logs)
    return min(2 * tail, 1.0)


def _ratio(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float("nan")
