"""The order in which trials are tried: all of a grid, random draws, or what Optuna suggests.

One decision is made here: what is asked next is a function of the seed and of what was told before,
so a sweep that was interrupted asks for the trials that it would have asked for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry
from consomme.sweep.choices import Choice, ListChoice

Keys = dict[str, Any]
"""One trial: recipe key -> value."""

Space = Mapping[str, Choice]
Mode = Literal["max", "min"]


class Search(Protocol):
    """A search while it runs."""

    def ask(self) -> Keys | None:
        """The next trial; None if there is none left."""

    def tell(self, number: int, value: float | None) -> None:
        """Take what came of the trial that was asked for as the `number`-th, from 0.

        Args:
            number: Which one.
            value: What is to become large or small; None if the trial failed or was stopped.
        """

    def recall(self, keys: Keys) -> None:
        """Take a trial that an earlier attempt had asked for, as if it were asked for now."""


class Searcher(Protocol):
    """A way to search."""

    def known(self, space: Space) -> list[Keys] | None:
        """List all trials; None if what comes next depends on what came of those before."""

    def begin(self, space: Space, mode: Mode) -> Search:
        """Start a search."""


SEARCHERS: Registry[Searcher] = Registry("searcher", "consomme/sweep/searchers.py")


class _Listed:
    """Hands out a list."""

    def __init__(self, trials: list[Keys]) -> None:
        self._trials, self._next = trials, 0

    def ask(self) -> Keys | None:
        if self._next == len(self._trials):
            return None
        self._next += 1
        return self._trials[self._next - 1]

    def tell(self, number: int, value: float | None) -> None:
        """Nothing depends on it."""

    def recall(self, keys: Keys) -> None:
        self._next += 1


@SEARCHERS.register("grid")
@dataclass(frozen=True, kw_only=True)
class Grid:
    """Try every combination; the last key changes fastest."""

    def known(self, space: Space) -> list[Keys]:
        """List every combination.

        Raises:
            RecipeError: A key has a range instead of values.
        """
        endless = [key for key, choice in space.items() if choice.listed is None]
        if endless:
            raise RecipeError(
                f"searcher: a grid cannot try every number of {', '.join(endless)}; list values as"
                " {name: choice, values: […]}, or take {name: random, num_trials: …}"
            )
        values = [choice.listed or () for choice in space.values()]
        return [dict(zip(space, one, strict=True)) for one in itertools.product(*values)]

    def begin(self, space: Space, mode: Mode) -> Search:
        """Start with the first."""
        return _Listed(self.known(space))


@dataclass(frozen=True, kw_only=True)
class _Some:
    """A number of trials out of many."""

    num_trials: int
    """How many."""

    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        """Check the number."""
        if self.num_trials < 1:
            raise RecipeError(f"num_trials: found {self.num_trials}, expected at least 1")


@SEARCHERS.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(_Some):
    """Draw each key by itself; more trials are the same ones and some more."""

    def known(self, space: Space) -> list[Keys]:
        """List the draws."""
        return [
            {
                key: choice.draw(random.Random(f"trial-{self.seed}-{number}-{key}"))
                for key, choice in space.items()
            }
            for number in range(self.num_trials)
        ]

    def begin(self, space: Space, mode: Mode) -> Search:
        """Start with the first."""
        return _Listed(self.known(space))


@SEARCHERS.register("optuna")
@dataclass(frozen=True, kw_only=True)
class Optuna(_Some):
    """Let Optuna's tree-structured Parzen estimator suggest what is worth trying.

    With trials side by side, what is suggested depends on which of them ends first.
    Source: Bergstra et al., NeurIPS 2011, as Optuna does it, with its constant liar.
    """

    num_random: int = 8
    """Trials drawn at random before it begins to learn."""

    def known(self, space: Space) -> None:
        """What comes next is not known before."""
        return

    def begin(self, space: Space, mode: Mode) -> Search:
        """Start a study."""
        return _Study(self, space, mode)


class _Study:
    """An Optuna study, each of whose suggestions has a seed of its own."""

    def __init__(self, settings: Optuna, space: Space, mode: Mode) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction: Any = "maximize" if mode == "max" else "minimize"
        self._optuna: Any = optuna
        self._study: Any = optuna.create_study(direction=direction)
        self._settings, self._space = settings, space
        self._trials: list[Any] = []

    def ask(self) -> Keys | None:
        number = len(self._trials)
        if number == self._settings.num_trials:
            return None
        self._study.sampler = self._optuna.samplers.TPESampler(
            # Of its own, so that it does not matter how many attempts it took to get here.
            seed=self._settings.seed * 1_000_003 + number,
            n_startup_trials=self._settings.num_random,
            constant_liar=True,
        )
        trial = self._study.ask()
        self._trials.append(trial)
        return {key: choice.suggest(trial, key) for key, choice in self._space.items()}

    def tell(self, number: int, value: float | None) -> None:
        states = self._optuna.trial.TrialState
        if value is None:
            self._study.tell(self._trials[number], state=states.FAIL)
        else:
            self._study.tell(self._trials[number], value)

    def recall(self, keys: Keys) -> None:
        self._study.enqueue_trial(
            {key: _place(choice, keys[key]) for key, choice in self._space.items()}
        )
        self.ask()


def _place(choice: Choice, value: Any) -> Any:
    """What Optuna knows a value by: see `ListChoice.suggest`."""
    return choice.values.index(value) if isinstance(choice, ListChoice) else value
