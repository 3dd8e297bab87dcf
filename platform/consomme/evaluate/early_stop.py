"""Stop asking a candidate that is worse, most likely, than the best one so far.

Both answer the same questions, in one order for all candidates. After a growing number of them, a
one-sided paired test says how likely so few gains would be if the candidate were as good. There are
several looks, so each has its part of the error level (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from consomme.base.bounds import NonNegativeInt
from consomme.base.checked import Checked
from consomme.base.errors import RecipeError
from consomme.evaluate.benchmark import Benchmark, HasParts, outcomes_of

_NUM_FLIPS = 20_000


@dataclass(frozen=True, kw_only=True)
class EarlyStop(Checked):
    """When a candidate is asked no more."""

    level: Annotated[float, Interval(gt=0, lt=0.5)] = 0.01
    """Probability, at most, with which a candidate is stopped that is as good as the best one so
    far. Exact where each question is right or wrong and counts alike; else by permutations."""

    first_questions: Annotated[int, Interval(ge=8)] = 32
    """Questions before the first look; there is another one whenever they have doubled."""

    seed: NonNegativeInt = 0
    """Of the order of the questions."""

    def looks(self, num_questions: int) -> list[int]:
        """Return after how many questions a look is taken; none after the last one."""
        found, at = [], self.first_questions
        while at < num_questions:
            found.append(at)
            at *= 2
        return found

    def order(self, num_questions: int) -> list[int]:
        """Return the questions in the order in which all candidates are asked."""
        order = list(range(num_questions))
        Random(self.seed).shuffle(order)
        return order

    def is_hopeless(self, gain_N: Sequence[float], num_looks: int) -> bool:
        """Whether a candidate is asked no more.

        Args:
            gain_N: Score of each question, times its weight, minus that of the best one so far.
            num_looks: Of the whole evaluation.
        """
        return p_as_good(gain_N) <= self.level / num_looks


def p_as_good(gain_N: Sequence[float]) -> float:
    """Return how likely so small a sum of gains is if gains and losses are equally likely.

    By the binomial distribution if all gains and losses are of one size, that is McNemar's exact
    test, one-sided; else by random signs, drawn with a fixed seed.
    """
    differing_N: NDArray[np.float64] = np.asarray([gain for gain in gain_N if gain], np.float64)
    if not len(differing_N):
        return 1.0
    sizes = np.abs(differing_N)
    if np.ptp(sizes) <= 1e-9 * sizes.max():
        return _binomial_tail(len(differing_N), int((differing_N > 0).sum()))
    signs = np.random.default_rng(0).integers(0, 2, (_NUM_FLIPS, len(sizes)), dtype=np.int8) * 2 - 1
    as_small = (signs @ sizes <= differing_N.sum() + 1e-9 * sizes.sum()).sum()
    return float((as_small + 1) / (_NUM_FLIPS + 1))


def _binomial_tail(total: int, at_most: int) -> float:
    """Return the probability of at most so many heads of a fair coin."""
    # In logarithms: 2 ** total is no float from 1,024 on.
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(at_most + 1)
    ]
    return min(1.0, math.fsum(math.exp(one - total * math.log(2)) for one in logs))


@dataclass(frozen=True, kw_only=True)
class AskedQuestions:
    """The questions of a benchmark, and the requests that each consists of."""

    requests: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    """Of the questions, with the mean 1: the main figure is the weighted mean of their scores."""

    @classmethod
    def of(cls, benchmark: Benchmark) -> AskedQuestions:
        """Find the questions.

        Raises:
            RecipeError: Which requests a question consists of is not known.
        """
        parts: list[tuple[Benchmark, float]] = [(benchmark, 1.0)]
        if isinstance(benchmark, HasParts):
            shares = [float(part.weight) for part in getattr(benchmark, "parts", ())]
            parts = list(zip(benchmark.benchmarks, shares, strict=True))
        found: list[tuple[int, ...]] = []
        weights: list[float] = []
        start = 0
        for part, share in parts:
            numbers = _question_numbers(part)
            members: dict[int, list[int]] = {}
            for request, question in enumerate(numbers):
                members.setdefault(question, []).append(start + request)
            found += [tuple(some) for some in members.values()]
            weights += [share / len(members)] * len(members)
            start += len(numbers)
        mean = sum(weights) / len(weights)
        return cls(requests=tuple(found), weights=tuple(weight / mean for weight in weights))

    def scores(self, benchmark: Benchmark, answers: Sequence[str]) -> list[float]:
        """Return the weighted score of each question; those not answered have any."""
        outcomes = outcomes_of(benchmark, answers)
        return [score * weight for score, weight in zip(outcomes, self.weights, strict=True)]

    def check(self, benchmark: Benchmark, answers: Sequence[str], figure: float) -> None:
        """Check that a main figure is the mean of what the questions score.

        Raises:
            RecipeError: It is not, so comparing questions would say nothing about it.
        """
        scores = self.scores(benchmark, answers)
        mean = sum(scores) / len(scores)
        if not math.isclose(mean, figure, abs_tol=1e-6):
            raise RecipeError(
                f"early_stop: the main figure of {type(benchmark).__name__} is {figure:.6f}, but"
                f" its questions score {mean:.6f} on average; candidates that are compared"
                " question by question need a figure that is their mean. Leave early_stop out"
            )


def _question_numbers(benchmark: Benchmark) -> list[int]:
    """Return the number of the question that each request is a part of."""
    own = getattr(benchmark, "question_numbers", None)
    if own is not None:
        return list(own())
    count = len(benchmark.items())
    if len(outcomes_of(benchmark, [""] * count)) != count:
        raise RecipeError(
            f"early_stop: {type(benchmark).__name__} asks a question in several requests, and does"
            " not say in which; leave early_stop out"
        )
    return list(range(count))
