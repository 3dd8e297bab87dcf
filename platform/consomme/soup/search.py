"""Chooses the ingredients of a soup, given a function that scores any selection of them.

The one decision: a search knows numbers only. Which models they stand for, how they are averaged
and what the score means is the caller's; higher is better. Every selection is scored once, whatever
asks for it, and every decision is kept in a trace.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked
from consomme.base.errors import DataError, RecipeError
from consomme.base.registry import Registry

Score = Callable[[tuple[int, ...]], float]
"""Scores the average of the ingredients with these indices, in rising order; higher is better."""


@dataclass(frozen=True, kw_only=True)
class SoupStep:
    """One decision of a search."""

    members: tuple[int, ...]
    """Selection that was scored, in rising order."""

    score: float
    """Its score."""

    candidate: int | None
    """Ingredient the decision is about; None if it is about the whole selection."""

    best_before: float | None
    """Score to beat: the pool without the candidate; None if there was none."""

    accepted: bool
    """Whether the selection became the soup, so far."""


@dataclass(frozen=True, kw_only=True)
class SoupResult:
    """What a search chose, and how it got there."""

    chosen: tuple[int, ...]
    """Indices of the ingredients, in rising order."""

    score: float
    """Score of their average."""

    single_scores: Mapping[int, float] = field(default_factory=dict)
    """Score of each ingredient alone, as far as the search asked for it."""

    trace: tuple[SoupStep, ...] = ()
    """Every decision, in order."""

    num_evaluations: int = 0
    """Selections that were really scored."""

    @property
    def best_single(self) -> tuple[int, float] | None:
        """Return index and score of the best single ingredient, if singles were scored."""
        if not self.single_scores:
            return None
        best = _ranked(self.single_scores)[0]
        return best, self.single_scores[best]


class SoupSearch(Protocol):
    """What the registry promises about every search."""

    def __call__(self, count: int, score: Score) -> SoupResult:
        """Choose among `count` ingredients."""


SEARCHES: Registry[SoupSearch] = Registry("soup search", "consomme/soup/search.py")


@SEARCHES.register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformSoup:
    """Average all ingredients; one evaluation.

    Source: arXiv 2409.04828 (POINTS), "average soup"; arXiv 2203.05482, "uniform soup".
    """

    def __call__(self, count: int, score: Score) -> SoupResult:
        """Take everything."""
        cached = _Cached(score, count)
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
    """How many to average: 1 is the best model alone, all of them the uniform soup."""

    def __call__(self, count: int, score: Score) -> SoupResult:
        """Take the best k.

        Raises:
            RecipeError: There are fewer than `k` ingredients.
        """
        if self.k > count:
            raise RecipeError(f"k: found {self.k}, but the soup has only {count} ingredients")
        cached = _Cached(score, count)
        trace = cached.score_singles()
        chosen = tuple(sorted(_ranked(cached.singles())[: self.k]))
        best_alone = max(cached.singles().values())
        trace.append(cached.step(chosen, candidate=None, best_before=best_alone, accepted=True))
        return cached.result(chosen, trace)


@SEARCHES.register("greedy")
@dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """Add ingredients in the order of their own score, keeping those that do not hurt.

    The result never scores below the best single ingredient on the metric it was chosen by; report
    another. At most 2 * count - 1 evaluations.

    Source: arXiv 2409.04828 (POINTS), section on model soup, accepts equal scores; arXiv 2203.05482
    (model soups) as well in its text, while its code asks for a gain: set `accept` to `>`.
    """

    accept: Literal[">=", ">"] = ">="
    """Whether an equal score is enough for a candidate to stay."""

    def __call__(self, count: int, score: Score) -> SoupResult:
        """Walk through the ingredients once."""
        cached = _Cached(score, count)
        trace = cached.score_singles()
        order = _ranked(cached.singles())
        pool: tuple[int, ...] = (order[0],)
        for candidate in order[1:]:
            tried = tuple(sorted((*pool, candidate)))
            before, after = cached(pool), cached(tried)
            accepted = after >= before if self.accept == ">=" else after > before
            trace.append(
                cached.step(tried, candidate=candidate, best_before=before, accepted=accepted)
            )
            pool = tried if accepted else pool
        return cached.result(pool, trace)


class _Cached:
    """Scores each selection once and remembers it."""

    def __init__(self, score: Score, count: int) -> None:
        if count < 1:
            raise RecipeError("a soup needs at least one ingredient; none was given")
        self._score = score
        self._count = count
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, members: tuple[int, ...]) -> float:
        if members not in self._known:
            value = float(self._score(members))
            if math.isnan(value):
                raise DataError(
                    f"the score of ingredients {list(members)} is NaN: nothing can be compared "
                    "with it; look at the evaluation's samples"
                )
            self._known[members] = value
        return self._known[members]

    def step(
        self,
        members: tuple[int, ...],
        *,
        candidate: int | None,
        best_before: float | None,
        accepted: bool,
    ) -> SoupStep:
        return SoupStep(
            members=members,
            score=self(members),
            candidate=candidate,
            best_before=best_before,
            accepted=accepted,
        )

    def score_singles(self) -> list[SoupStep]:
        """Score every ingredient alone; the best one is the first of the pool."""
        for index in range(self._count):
            self((index,))
        singles = self.singles()
        order = _ranked(singles)
        return [
            self.step((i,), candidate=i, best_before=None, accepted=i == order[0]) for i in order
        ]

    def singles(self) -> dict[int, float]:
        return {members[0]: s for members, s in self._known.items() if len(members) == 1}

    def result(self, chosen: tuple[int, ...], trace: list[SoupStep]) -> SoupResult:
        return SoupResult(
            chosen=chosen,
            score=self(chosen),
            single_scores=self.singles(),
            trace=tuple(trace),
            num_evaluations=len(self._known),
        )


def _ranked(singles: Mapping[int, float]) -> list[int]:
    """Return indices by falling score; equal scores in their given order."""
    return sorted(singles, key=lambda index: (-singles[index], index))
