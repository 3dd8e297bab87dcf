"""What a search for the ingredients of a soup is given, and what it returns.

A search works on indices and scores only; the caller knows the models, mixes them and defines the
score (higher is better). Every candidate is scored once, and every decision is kept in a trace. The
searches are in `consomme.soup.selections` and `consomme.soup.weights_search`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from consomme.base.errors import DataError, RecipeError
from consomme.base.registry import Registry
from consomme.soup.blends import WHOLE, Blend, Candidate, Grouping, members_of

ScoreFunction = Callable[[Any], float]
"""Scores a candidate, a selection or a blend; higher is better. See `CachedScores` for what else it
may know."""


@dataclass(frozen=True, kw_only=True)
class SoupStep:
    """One decision of a search."""

    members: tuple[int, ...]
    """Indices of the scored selection, ascending."""

    score: float
    """Score of the selection."""

    candidate: int | None
    """Index of the ingredient under test; None if the whole selection is."""

    best_before: float | None
    """Score to beat: that of the pool without the candidate; None if there is no pool yet."""

    accepted: bool
    """Whether the selection became the current soup."""

    blend: Blend | None = None
    """The candidate, if it is no selection that is mixed in equal parts."""

    @property
    def scored(self) -> Candidate:
        """The candidate that was scored."""
        return self.blend or self.members


@dataclass(frozen=True, kw_only=True)
class SoupResult:
    """The result of a search, with its trace."""

    chosen: tuple[int, ...]
    """Indices of the selected ingredients, ascending."""

    score: float
    """Score of their mix."""

    blend: Blend | None = None
    """Their shares, unless they are mixed in equal parts."""

    single_scores: Mapping[int, float] = field(default_factory=dict)
    """Score of each ingredient alone, if the search computed it."""

    trace: tuple[SoupStep, ...] = ()
    """Every decision, in order."""

    num_evaluations: int = 0
    """Number of distinct candidates that were scored."""

    front: tuple[Candidate, ...] = ()
    """With several objectives: candidates that no other one excels in all of them, in falling order
    of the first one."""

    @property
    def soup(self) -> Candidate:
        """The candidate that was chosen."""
        return self.blend or self.chosen

    @property
    def best_single(self) -> tuple[int, float] | None:
        """Return index and score of the best single ingredient, if singles were scored."""
        if not self.single_scores:
            return None
        best = ranked(self.single_scores)[0]
        return best, self.single_scores[best]


class SoupSearch(Protocol):
    """Interface of every registered search."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Select among `count` ingredients."""


SEARCHES: Registry[SoupSearch] = Registry("soup search", "consomme/soup/searches.py")


class CachedScores:
    """Scores each candidate once and caches the score.

    The function may have methods for what a search can do without:

    - `ahead(candidates, beat)`: these will be asked for next, so they can be scored at the same
      time. `beat` is a scored candidate or None: one that is worse, most likely, need not be scored
      to the end, and then has a score of minus infinity. A call takes `beat`, too.
    - `can_stop`: whether it makes use of `beat`.
    - `objectives(candidate)`: several figures, instead of the score alone.
    - `worth(candidate)`: a finite number to learn from, where the score is minus infinity.
    - `num_groups(grouping)`: of the tensors that may have shares of their own.
    - `clock()`: seconds, instead of those of this process.
    """

    def __init__(self, score: ScoreFunction, count: int) -> None:
        """Know nothing yet.

        Raises:
            RecipeError: There are no ingredients.
        """
        if count < 1:
            raise RecipeError("a soup needs at least one ingredient; none was given")
        self._score = score
        self._count = count
        self._known: dict[Candidate, float] = {}
        self._clock: Callable[[], float] = getattr(score, "clock", time.monotonic)
        self._began = self._clock()

    def __call__(self, candidate: Candidate, beat: Candidate | None = None) -> float:
        """Return the score of a candidate.

        Args:
            candidate: Not scored to the end if it is worse, most likely, than `beat`.
            beat: A candidate that was scored; see the class.

        Raises:
            DataError: The score is undefined.
        """
        if candidate not in self._known:
            value = float(self._score(candidate, **self._beating(beat)))
            if math.isnan(value):
                raise DataError(
                    f"the score of ingredients {list(members_of(candidate))} is NaN: nothing can be"
                    " compared with it; look at the evaluation's samples"
                )
            self._known[candidate] = value
        return self._known[candidate]

    def __contains__(self, candidate: Candidate) -> bool:
        """Whether a candidate was scored."""
        return candidate in self._known

    def __len__(self) -> int:
        """Return how many candidates were scored."""
        return len(self._known)

    def __iter__(self) -> Iterator[Candidate]:
        """Yield the candidates in the order in which they were scored."""
        return iter(self._known)

    @property
    def hours(self) -> float:
        """Time since the search began."""
        return (self._clock() - self._began) / 3600

    @property
    def can_stop(self) -> bool:
        """Whether candidates that are worse than another one need not be scored to the end."""
        return bool(getattr(self._score, "can_stop", False))

    def _beating(self, beat: Candidate | None) -> dict[str, Candidate]:
        # What lost too much, or was not scored to the end, is no measure.
        is_measure = beat is not None and self.can_stop and math.isfinite(self._known[beat])
        return {"beat": beat} if is_measure and beat is not None else {}

    def ahead(self, candidates: Iterable[Candidate], beat: Candidate | None = None) -> None:
        """Say which candidates will be asked for, if that is of use."""
        tell = getattr(self._score, "ahead", None)
        if tell is not None:
            tell([one for one in candidates if one not in self._known], **self._beating(beat))

    def worth(self, candidate: Candidate) -> float:
        """Return what a search by numbers learns from a candidate."""
        own = getattr(self._score, "worth", None)
        return self(candidate) if own is None else float(own(candidate))

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Return what is to be as high as possible."""
        self(candidate)
        own = getattr(self._score, "objectives", None)
        return (self(candidate),) if own is None else tuple(map(float, own(candidate)))

    def num_groups(self, grouping: Grouping) -> int:
        """Return how many groups of tensors may have shares of their own."""
        return 1 if grouping == WHOLE else int(getattr(self._score, "num_groups")(grouping))  # noqa: B009

    def step(
        self,
        scored: Candidate,
        *,
        candidate: int | None,
        best_before: float | None,
        accepted: bool,
    ) -> SoupStep:
        """Return a decision about a candidate."""
        return SoupStep(
            members=members_of(scored),
            score=self(scored),
            candidate=candidate,
            best_before=best_before,
            accepted=accepted,
            blend=scored if isinstance(scored, Blend) else None,
        )

    def score_singles(self) -> list[SoupStep]:
        """Score every ingredient alone; the best one starts the pool."""
        for index in range(self._count):
            self((index,))
        singles = self.singles()
        order = ranked(singles)
        return [
            self.step((i,), candidate=i, best_before=None, accepted=i == order[0]) for i in order
        ]

    def singles(self) -> dict[int, float]:
        """Return the scores of ingredients alone."""
        return {
            one[0]: score
            for one, score in self._known.items()
            if not isinstance(one, Blend) and len(one) == 1
        }

    def result(
        self, chosen: Candidate, trace: list[SoupStep], front: Sequence[Candidate] = ()
    ) -> SoupResult:
        """Return the result of a search."""
        return SoupResult(
            chosen=members_of(chosen),
            score=self(chosen),
            blend=chosen if isinstance(chosen, Blend) else None,
            single_scores=self.singles(),
            trace=tuple(trace),
            num_evaluations=len(self._known),
            front=tuple(front),
        )


def ranked(singles: Mapping[int, float]) -> list[int]:
    """Return indices by descending score; ties in ascending order of index."""
    return sorted(singles, key=lambda index: (-singles[index], index))
