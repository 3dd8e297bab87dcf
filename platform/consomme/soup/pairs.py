"""Mixes of every two ingredients: the best of them, and the barrier between two models.

Models that were tuned from one checkpoint can be mixed as far as the straight line between their
weights holds no worse model than its ends: linear mode connectivity, arXiv 1912.05671. The barrier
is how far the score on the way falls below the straight line between both scores, at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

from annotated_types import Interval

from consomme.base.checked import Checked
from consomme.base.errors import RecipeError
from consomme.soup.blends import WHOLE, Candidate, blend
from consomme.soup.search import SEARCHES, CachedScores, ScoreFunction, SoupResult


@dataclass(frozen=True, kw_only=True)
class PairMix:
    """A mix of two ingredients."""

    first: int
    second: int
    share: float
    """Of the second one."""

    mixed: Candidate


@dataclass(frozen=True, kw_only=True)
class Barrier:
    """What lies between two ingredients."""

    first: int
    second: int
    barrier: float
    """How far the score of a mix falls below the line between both scores, at most; below zero if
    every mix is better than the line."""

    best: float
    """Highest score of a mix."""

    best_share: float
    """Share of the second one in it."""


@SEARCHES.register("pairs")
@dataclass(frozen=True, kw_only=True)
class PairSoups(Checked):
    """Mix every two ingredients at equal steps: the best mix or single, and the barriers.

    Takes count + points * count * (count - 1) / 2 evaluations; with one point, halves of selections
    that other searches score too. The report shows the barriers.
    """

    points: Annotated[int, Interval(ge=1, le=19)] = 1
    """Mixes between two ingredients: 1 is the middle, 3 are quarters."""

    max_evaluations: Annotated[int, Interval(ge=1)] = 1000
    """More evaluations are refused."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Score all.

        Raises:
            RecipeError: There are too many.
        """
        mixes = list(self.mixes(count))
        if count + len(mixes) > self.max_evaluations:
            raise RecipeError(
                f"pairs: found {count} ingredients and points {self.points}, which take"
                f" {count + len(mixes):,} evaluations; expected at most {self.max_evaluations:,}"
                " (max_evaluations)"
            )
        cached = CachedScores(score, count)
        trace = cached.score_singles()
        best: Candidate = trace[0].scored
        cached.ahead([one.mixed for one in mixes])
        for one in mixes:
            before = cached(best)
            accepted = cached(one.mixed) > before
            trace.append(
                cached.step(one.mixed, candidate=None, best_before=before, accepted=accepted)
            )
            best = one.mixed if accepted else best
        return cached.result(best, trace)

    def mixes(self, count: int) -> Iterator[PairMix]:
        """Yield what is mixed, pair by pair."""
        steps = self.points + 1
        for first, second in combinations(range(count), 2):
            for k in range(1, steps):
                units = [0] * count
                units[first], units[second] = steps - k, k
                yield PairMix(
                    first=first, second=second, share=k / steps, mixed=blend(WHOLE, [units])
                )

    def barriers(self, count: int, score: Callable[[Candidate], float]) -> Iterator[Barrier]:
        """Yield the barrier of each pair, by the scores of all mixes and singles."""
        mixes = list(self.mixes(count))
        for start in range(0, len(mixes), self.points):
            some = mixes[start : start + self.points]
            first, second = some[0].first, some[0].second
            ends = score((first,)), score((second,))
            scores = [score(one.mixed) for one in some]
            falls = [
                (1 - one.share) * ends[0] + one.share * ends[1] - found
                for one, found in zip(some, scores, strict=True)
            ]
            best = max(range(len(some)), key=lambda k: scores[k])
            yield Barrier(
                first=first,
                second=second,
                barrier=max(falls),
                best=scores[best],
                best_share=some[best].share,
            )
