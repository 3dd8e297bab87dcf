"""Search algorithms of a sweep: grid, random, or Optuna, each with an ask-and-tell interface.

The next trial is a function of the seed and of the results so far, so a sweep that was interrupted
continues with the trials that it would have run anyway.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from consomme.base.bounds import NonNegativeInt, PositiveInt
from consomme.base.checked import Checked
from consomme.base.errors import RecipeError
from consomme.base.registry import Registry
from consomme.base.study import Study, sampler
from consomme.sweep.choices import AdditionsChoice, Choice, ListChoice

Keys = dict[str, Any]
"""One trial: recipe key -> value."""

Space = Mapping[str, Choice]
Mode = Literal["max", "min"]


class Search(Protocol):
    """A running search."""

    def ask(self) -> Keys | None:
        """Return the next trial; None if there is none left, or none at the moment."""

    @property
    def is_waiting(self) -> bool:
        """Whether the next trial depends on a result that is still to come."""

    def tell(self, number: int, value: float | None) -> None:
        """Receive the result of a trial.

        Args:
            number: Of the trial, from 0, in the order of `ask` and `replay`.
            value: The metric to maximize or minimize; None if the trial failed or was stopped.
        """

    def replay(self, keys: Keys) -> None:
        """Repeat an `ask` of an earlier attempt, which had returned these keys."""


class Searcher(Protocol):
    """A search algorithm with its settings."""

    def list_trials(self, space: Space) -> list[Keys] | None:
        """List all trials; None if later trials depend on the results of earlier ones."""

    def count_trials(self, space: Space) -> int:
        """Return how many trials there will be."""

    def start(self, space: Space, mode: Mode) -> Search:
        """Start a search."""


SEARCHERS: Registry[Searcher] = Registry("searcher", "consomme/sweep/searchers.py")


class _ListSearch:
    """Returns the trials of a list in order."""

    is_waiting = False

    def __init__(self, trials: list[Keys]) -> None:
        self._trials, self._next = trials, 0

    def ask(self) -> Keys | None:
        if self._next == len(self._trials):
            return None
        self._next += 1
        return self._trials[self._next - 1]

    def tell(self, number: int, value: float | None) -> None:
        """Ignore the result: the list is fixed."""

    def replay(self, keys: Keys) -> None:
        self._next += 1


@SEARCHERS.register("grid")
@dataclass(frozen=True, kw_only=True)
class Grid:
    """Try every combination; the last key changes fastest."""

    def list_trials(self, space: Space) -> list[Keys]:
        """List every combination.

        Raises:
            RecipeError: A key has a range instead of values.
        """
        ranges = [key for key, choice in space.items() if choice.listed is None]
        if ranges:
            raise RecipeError(
                f"searcher: a grid cannot try every value of {', '.join(ranges)}; list values as"
                " {name: choice, values: […]}, or take {name: random, num_trials: …}"
            )
        values = [choice.listed or () for choice in space.values()]
        return [dict(zip(space, one, strict=True)) for one in itertools.product(*values)]

    def count_trials(self, space: Space) -> int:
        """Return the number of combinations."""
        return len(self.list_trials(space))

    def start(self, space: Space, mode: Mode) -> Search:
        """Start at the first trial."""
        return _ListSearch(self.list_trials(space))


@dataclass(frozen=True, kw_only=True)
class _SamplingSearcher(Checked):
    """Base of searchers that run a given number of trials."""

    num_trials: PositiveInt
    """Number of trials."""

    seed: int = 0
    """Random seed."""

    def count_trials(self, space: Space) -> int:
        """Return the given number."""
        return self.num_trials


@SEARCHERS.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(_SamplingSearcher):
    """Draw every key independently; raising `num_trials` keeps the earlier trials."""

    def list_trials(self, space: Space) -> list[Keys]:
        """List all draws."""
        return [
            {
                key: choice.draw(random.Random(f"trial-{self.seed}-{number}-{key}"))
                for key, choice in space.items()
            }
            for number in range(self.num_trials)
        ]

    def start(self, space: Space, mode: Mode) -> Search:
        """Start at the first trial."""
        return _ListSearch(self.list_trials(space))


@SEARCHERS.register("optuna")
@dataclass(frozen=True, kw_only=True)
class Optuna(_SamplingSearcher):
    """Let Optuna's tree-structured Parzen estimator (TPE) suggest trials.

    With parallel trials, the suggestions depend on the order in which trials end.
    Source: Bergstra et al., NeurIPS 2011; Optuna's implementation with `constant_liar`.
    """

    num_random: NonNegativeInt = 8
    """Trials drawn at random before TPE starts (`n_startup_trials`)."""

    def list_trials(self, space: Space) -> None:
        """Return None: suggestions depend on results."""
        return

    def start(self, space: Space, mode: Mode) -> Search:
        """Start a study."""
        return _OptunaSearch(self, space, mode)


class _OptunaSearch:
    """An Optuna study of recipe keys."""

    is_waiting = False

    def __init__(self, settings: Optuna, space: Space, mode: Mode) -> None:
        self._study = Study(
            ["maximize" if mode == "max" else "minimize"],
            sampler("TPESampler", n_startup_trials=settings.num_random, constant_liar=True),
            seed=settings.seed,
        )
        self._settings, self._space = settings, space

    def ask(self) -> Keys | None:
        if len(self._study) == self._settings.num_trials:
            return None
        return self._study.ask(
            lambda trial: {key: choice.suggest(trial, key) for key, choice in self._space.items()}
        )

    def tell(self, number: int, value: float | None) -> None:
        self._study.tell(number, value)

    def replay(self, keys: Keys) -> None:
        known: dict[str, Any] = {}
        for key, choice in self._space.items():
            known |= _optuna_values(choice, key, keys[key])
        self._study.enqueue(known)
        self.ask()


def _optuna_values(choice: Choice, key: str, value: Any) -> dict[str, Any]:
    """Return a value as Optuna stores it, see the methods `suggest` of choices."""
    if isinstance(choice, ListChoice):
        return {key: choice.values.index(value)}
    if isinstance(choice, AdditionsChoice):
        return choice.suggested(key, value)
    return {key: value}
