"""The search space of a sweep: for each recipe key, listed values or a range to draw from.

Drawn numbers are rounded to six significant digits, so that a user who types the values of a trial
by hand gets the same run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

from consomme.base.bounds import PositiveFloat
from consomme.base.checked import Checked, rule
from consomme.base.registry import Registry


class OptunaTrial(Protocol):
    """The part of `optuna.Trial` that is used here."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Suggest one of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Suggest a number in a range."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Suggest an integer in a range."""


class Choice(Protocol):
    """The possible values of one key."""

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All values in grid order; None if there are infinitely many."""

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values to validate recipes with: listed values, or the ends of a range."""

    def draw(self, rng: random.Random) -> Any:
        """Draw one value at random."""

    def suggest(self, trial: OptunaTrial, key: str) -> Any:
        """Let Optuna suggest one value."""


CHOICES: Registry[Choice] = Registry("choice", "consomme/sweep/choices.py")


@CHOICES.register("choice")
@dataclass(frozen=True, kw_only=True)
class ListChoice(Checked):
    """Categorical: listed values of any type, such as numbers, strings, whole strategies."""

    values: tuple[Any, ...]
    """The values, in the order in which a grid tries them."""

    @rule
    def _values_are_unique(self) -> Iterator[str]:
        if not self.values:
            yield "values: found none, expected at least one"
        repeated = [value for k, value in enumerate(self.values) if value in self.values[:k]]
        if repeated:
            yield f"values: found {repeated[0]!r} more than once"

    @property
    def listed(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    @property
    def samples(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def draw(self, rng: random.Random) -> Any:
        """Draw a value, all equally likely."""
        return rng.choice(self.values)

    def suggest(self, trial: OptunaTrial, key: str) -> Any:
        """Let Optuna suggest an index, because it does not accept mappings as values."""
        return self.values[trial.suggest_categorical(key, list(range(len(self.values))))]


@CHOICES.register("additions")
@dataclass(frozen=True, kw_only=True)
class AdditionsChoice(Checked):
    """A list, such as `data`, that some candidates may be added to, each or not."""

    candidates: tuple[Any, ...]
    """Entries that may be added, in the order in which they are tried."""

    always: tuple[Any, ...] = ()
    """Entries that are in the list anyway, before those that are added."""

    @rule
    def _candidates_are_unique(self) -> Iterator[str]:
        if not self.candidates:
            yield "candidates: found none, expected at least one"
        every = [*self.always, *self.candidates]
        repeated = [value for k, value in enumerate(every) if value in every[:k]]
        if repeated:
            yield f"candidates: found {repeated[0]!r} more than once"

    @property
    def listed(self) -> None:
        """None: there are too many combinations."""
        return

    @property
    def samples(self) -> tuple[Any, ...]:
        """The list with each single candidate."""
        return tuple(self.value({k}) for k in range(len(self.candidates)))

    def value(self, added: Set[int]) -> list[Any]:
        """Return the list with some candidates, by number."""
        return [*self.always, *(one for k, one in enumerate(self.candidates) if k in added)]

    def added_in(self, value: Sequence[Any]) -> frozenset[int]:
        """Return the numbers of the candidates in a list."""
        return frozenset(k for k, one in enumerate(self.candidates) if one in value)

    def draw(self, rng: random.Random) -> Any:
        """Draw each candidate with probability one half; one of them if the list were empty."""
        added = {k for k in range(len(self.candidates)) if rng.random() < 0.5}
        if not (added or self.always):
            added = {rng.randrange(len(self.candidates))}
        return self.value(added)

    def suggest(self, trial: OptunaTrial, key: str) -> Any:
        """Let Optuna say of each candidate whether it is added.

        Of a list that would be empty without any, it says first which is the first one.
        """
        added, start = set[int](), 0
        if not self.always:
            first = trial.suggest_categorical(f"{key}.first", list(range(len(self.candidates))))
            added, start = {first}, first + 1
        for k in range(start, len(self.candidates)):
            if trial.suggest_categorical(f"{key}[{k}]", [False, True]):
                added.add(k)
        return self.value(added)

    def suggested(self, key: str, value: Sequence[Any]) -> dict[str, Any]:
        """Return what Optuna had said of a value, by the names in `suggest`."""
        added, start, said = self.added_in(value), 0, dict[str, Any]()
        if not self.always:
            said[f"{key}.first"], start = min(added), min(added) + 1
        return said | {f"{key}[{k}]": k in added for k in range(start, len(self.candidates))}


@dataclass(frozen=True, kw_only=True)
class _Range(Checked):
    """Real numbers from `low` to `high`, both included."""

    low: float
    """Smallest value."""

    high: float
    """Largest value."""

    @rule
    def _low_below_high(self) -> Iterator[str]:
        if not self.low < self.high:
            yield f"low: found {self.low}, expected less than high, which is {self.high}"

    @property
    def listed(self) -> None:
        """None: there are infinitely many."""
        return

    @property
    def samples(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


@CHOICES.register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformChoice(_Range):
    """A real number, uniformly distributed."""

    def draw(self, rng: random.Random) -> float:
        """Draw a number."""
        return _rounded(rng.uniform(self.low, self.high), self)

    def suggest(self, trial: OptunaTrial, key: str) -> float:
        """Let Optuna suggest a number."""
        return _rounded(trial.suggest_float(key, self.low, self.high), self)


@CHOICES.register("log_uniform")
@dataclass(frozen=True, kw_only=True)
class LogUniformChoice(_Range):
    """A real number whose logarithm is uniformly distributed, as for learning rates."""

    low: PositiveFloat
    """Smallest value."""

    high: PositiveFloat
    """Largest value."""

    def draw(self, rng: random.Random) -> float:
        """Draw a number."""
        return _rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))), self)

    def suggest(self, trial: OptunaTrial, key: str) -> float:
        """Let Optuna suggest a number."""
        return _rounded(trial.suggest_float(key, self.low, self.high, log=True), self)


@CHOICES.register("int_uniform")
@dataclass(frozen=True, kw_only=True)
class IntUniformChoice(Checked):
    """An integer, uniformly distributed."""

    low: int
    """Smallest value."""

    high: int
    """Largest value."""

    @rule
    def _low_below_high(self) -> Iterator[str]:
        if not self.low < self.high:
            yield f"low: found {self.low}, expected less than high, which is {self.high}"

    @property
    def listed(self) -> tuple[int, ...]:
        """All integers of the range."""
        return tuple(range(self.low, self.high + 1))

    @property
    def samples(self) -> tuple[int, int]:
        """Both ends."""
        return self.low, self.high

    def draw(self, rng: random.Random) -> int:
        """Draw a number."""
        return rng.randint(self.low, self.high)

    def suggest(self, trial: OptunaTrial, key: str) -> int:
        """Let Optuna suggest a number."""
        return trial.suggest_int(key, self.low, self.high)


def _rounded(value: float, limits: _Range) -> float:
    """Round to six significant digits, within the range."""
    return min(max(float(f"{value:.6g}"), limits.low), limits.high)
