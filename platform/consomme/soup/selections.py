"""Searches among selections of ingredients, which are mixed in equal parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Annotated, Literal

from annotated_types import Interval

from consomme.base.bounds import NonNegativeInt, PositiveInt
from consomme.base.checked import Checked
from consomme.base.errors import RecipeError
from consomme.soup.search import (
    SEARCHES,
    CachedScores,
    ScoreFunction,
    SoupResult,
    SoupStep,
    ranked,
)


@SEARCHES.register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformSoup:
    """Average all ingredients; one evaluation.

    Source: arXiv 2409.04828 (POINTS), "average soup"; arXiv 2203.05482, "uniform soup".
    """

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Select all ingredients."""
        cached = CachedScores(score, count)
        everything = tuple(range(count))
        step = cached.step(everything, candidate=None, best_before=None, accepted=True)
        return cached.result(everything, [step])


@SEARCHES.register("maximum")
@dataclass(frozen=True, kw_only=True)
class MaximumSoup(Checked):
    """Average the `k` ingredients that score best alone; at most count + 1 evaluations.

    Source: arXiv 2409.04828 (POINTS), "maximum soup"; the paper does not state its k.
    """

    k: PositiveInt = 2
    """Number to average: 1 is the best model alone, all of them the uniform soup."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Select the best k.

        Raises:
            RecipeError: There are fewer than `k` ingredients.
        """
        if self.k > count:
            raise RecipeError(f"k: found {self.k}, but the soup has only {count} ingredients")
        cached = CachedScores(score, count)
        trace = cached.score_singles()
        chosen = tuple(sorted(ranked(cached.singles())[: self.k]))
        best_alone = max(cached.singles().values())
        trace.append(cached.step(chosen, candidate=None, best_before=best_alone, accepted=True))
        return cached.result(chosen, trace)


@SEARCHES.register("greedy")
@dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """Add ingredients in the order of their own score, keeping those that do not hurt.

    On the metric used for the search, the result never scores below the best single ingredient; so
    report another metric. At most 2 * count - 1 evaluations.

    Source: arXiv 2409.04828 (POINTS), section on model soup, accepts equal scores; so does the text
    of arXiv 2203.05482 (model soups), while its code requires a gain: set `accept` to `>`.
    """

    accept: Literal[">=", ">"] = ">="
    """`>=` accepts a candidate with an equal score, `>` requires a gain."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Test each ingredient once, best first."""
        cached = CachedScores(score, count)
        trace = cached.score_singles()
        order = ranked(cached.singles())
        pool: tuple[int, ...] = (order[0],)
        for candidate in order[1:]:
            extended = tuple(sorted((*pool, candidate)))
            before, after = cached(pool), cached(extended, beat=pool)
            accepted = _is_gain(after, before, self.accept)
            trace.append(
                cached.step(extended, candidate=candidate, best_before=before, accepted=accepted)
            )
            pool = extended if accepted else pool
        return cached.result(pool, trace)


@SEARCHES.register("leave_one_out")
@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """Start with all ingredients and leave out, one after the other, the one that hurts most.

    It ends when leaving out any of them makes the rest worse, or no better with `>`. At most
    count * (count + 1) / 2 evaluations.
    """

    accept: Literal[">=", ">"] = ">"
    """`>=` also leaves out ingredients that make no difference."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Leave out ingredients."""
        cached = CachedScores(score, count)
        pool = tuple(range(count))
        trace = [cached.step(pool, candidate=None, best_before=None, accepted=True)]
        while len(pool) > 1:
            rest = {index: tuple(k for k in pool if k != index) for index in pool}
            cached.ahead(rest.values(), beat=pool)
            before = cached(pool)
            order = ranked({index: cached(members, beat=pool) for index, members in rest.items()})
            after = cached(rest[order[0]])
            accepted = _is_gain(after, before, self.accept)
            trace += [
                cached.step(
                    rest[index],
                    candidate=index,
                    best_before=before,
                    accepted=accepted and index == order[0],
                )
                for index in order
            ]
            if not accepted:
                break
            pool = rest[order[0]]
        return cached.result(pool, trace)


@SEARCHES.register("beam")
@dataclass(frozen=True, kw_only=True)
class BeamSoup(Checked):
    """Grow several soups at a time: of each size, the best `width` of all that one more makes.

    With a width of 1 it adds what helps most at each step, which greedy does not look for. It ends
    when a size brings nothing better than what was found. At most width * count**2 evaluations.
    """

    width: PositiveInt = 3
    """Soups of each size that are grown."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Grow soups."""
        cached = CachedScores(score, count)
        trace = cached.score_singles()
        best: tuple[int, ...] = (ranked(cached.singles())[0],)
        beam: list[tuple[int, ...]] = [(k,) for k in ranked(cached.singles())[: self.width]]
        for _ in range(count - 1):
            grown = sorted(
                {
                    tuple(sorted((*members, k)))
                    for members in beam
                    for k in range(count)
                    if k not in members
                }
            )
            cached.ahead(grown)
            beam = sorted(grown, key=lambda members: (-cached(members), members))[: self.width]
            better = cached(beam[0]) > cached(best)
            trace += [
                cached.step(
                    members,
                    candidate=None,
                    best_before=cached(best),
                    accepted=better and members == beam[0],
                )
                for members in beam
            ]
            if not better:
                break
            best = beam[0]
        return cached.result(best, trace)


@SEARCHES.register("exhaustive")
@dataclass(frozen=True, kw_only=True)
class ExhaustiveSoup(Checked):
    """Score every selection: 2**count - 1 evaluations. The best; of equal ones the smallest."""

    max_ingredients: Annotated[int, Interval(ge=1, le=20)] = 12
    """More ingredients are refused: each doubles the evaluations."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Score all.

        Raises:
            RecipeError: There are more ingredients than allowed.
        """
        if count > self.max_ingredients:
            raise RecipeError(
                f"exhaustive: found {count} ingredients, which have {2**count - 1:,} selections;"
                f" expected at most {self.max_ingredients} (max_ingredients), or take beam"
            )
        every = [s for size in range(1, count + 1) for s in combinations(range(count), size)]
        return _best_of(every, count, score)


@SEARCHES.register("random")
@dataclass(frozen=True, kw_only=True)
class RandomSoups(Checked):
    """Score random selections, each ingredient in with probability one half; the best of them.

    What any search has to beat with as many evaluations.
    """

    num: PositiveInt = 20
    """Different selections; all, if there are not so many."""

    seed: NonNegativeInt = 0
    """Of the selections."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Score some."""
        rng = Random(self.seed)
        every = 2**count - 1
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < min(self.num, every):
            members = tuple(k for k in range(count) if rng.random() < 0.5)
            if members:
                drawn[members] = None
        return _best_of(sorted(drawn, key=lambda one: (len(one), one)), count, score)


def _is_gain(after: float, before: float, accept: Literal[">=", ">"]) -> bool:
    """Whether a candidate is accepted; one that lost too much is not, even if the pool did."""
    return after > before or (accept == ">=" and after == before and math.isfinite(after))


def _best_of(selections: Sequence[tuple[int, ...]], count: int, score: ScoreFunction) -> SoupResult:
    """Score selections, the smallest first, and choose the best; of equal ones the first."""
    cached = CachedScores(score, count)
    trace: list[SoupStep] = []
    best = selections[0]
    # What is worse than the best is seen against the best of what was scored before.
    size = _AT_A_TIME if cached.can_stop else len(selections)
    for start in range(0, len(selections), size):
        some = selections[start : start + size]
        beat = best if start else None
        cached.ahead(some, beat=beat)
        for members in some:
            before = cached(best) if trace else None
            accepted = cached(members, beat=beat) > (-math.inf if before is None else before)
            accepted = accepted or before is None
            trace.append(
                cached.step(members, candidate=None, best_before=before, accepted=accepted)
            )
            best = members if accepted else best
    return cached.result(best, trace)


_AT_A_TIME = 8
"""Candidates that are scored at the same time where worse ones are stopped."""
