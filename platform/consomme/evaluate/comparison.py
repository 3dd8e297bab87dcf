"""Compare two models on the same questions: is the difference more than chance?

A benchmark of n questions, on a share d of which two models differ, can show differences from about
2.8 sqrt(d / n) on: that is the difference found with a probability of 80 % at a level of 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consomme.base.errors import DataError

NUM_RESAMPLES = 10_000
_POWER_80 = 1.959963984540054 + 0.8416212335729143
"""Two-sided 5 % point plus the 80 % point of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two models' mean verdicts on the same questions."""

    difference: float
    """Mean of the second model minus mean of the first."""

    low: float
    """Lower end of the 95 % interval of the difference."""

    high: float
    """Upper end."""

    p_value: float
    """Probability of a difference as large as this one if the models were equally good: the exact
    McNemar test if all verdicts are 0 or 1, else a paired permutation test of signs."""

    resolvable: float
    """Smallest difference that these questions could show, given how often the models differ, at
    least on one question."""


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two models by their verdicts, from 0 to 1, in the order of the questions.

    Intervals and permutations are drawn with a fixed seed, so the same verdicts give the same
    figures.

    Raises:
        DataError: There are no questions, or not the same number of them.
    """
    if not first or len(first) != len(second):
        raise DataError(
            f"found {len(first)} and {len(second)} verdicts, expected those of two models on the"
            " same questions"
        )
    gain_N = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    is_binary = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    rng = np.random.default_rng(0)
    means = [gain_N[rng.integers(0, len(gain_N), len(gain_N))].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    # Models that never differed here may differ on the next question.
    differing = max(float(np.mean(gain_N**2)), 1 / len(gain_N))
    spread = math.sqrt(differing / len(gain_N))
    better, worse = int((gain_N > 0).sum()), int((gain_N < 0).sum())
    return Comparison(
        difference=float(gain_N.mean()),
        low=float(low),
        high=float(high),
        p_value=mcnemar(better, worse) if is_binary else _sign_permutations(gain_N, rng),
        resolvable=_POWER_80 * spread,
    )


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided p value of McNemar's exact test.

    Args:
        better: Questions that only the second model answers rightly.
        worse: Those that only the first does.
    """
    total, fewer = better + worse, min(better, worse)
    if better == worse:
        return 1.0
    # In logarithms: 2 ** total is no float from 1,024 questions on.
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(fewer + 1)
    ]
    tail = math.fsum(math.exp(value - total * math.log(2)) for value in logs)
    return min(1.0, 2 * tail)


def _sign_permutations(gain_N: np.ndarray, rng: np.random.Generator) -> float:
    observed = abs(gain_N.sum()) - 1e-12
    differing_N = gain_N[gain_N != 0]
    if not len(differing_N):
        return 1.0
    num_as_large = sum(
        abs((differing_N * rng.choice((-1.0, 1.0), len(differing_N))).sum()) >= observed
        for _ in range(NUM_RESAMPLES)
    )
    return float((num_as_large + 1) / (NUM_RESAMPLES + 1))
