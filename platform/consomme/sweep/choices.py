"""The search space of a sweep: for each recipe key, listed values or a range to draw from.

Drawn numbers are rounded to six significant digits, so that a user who types the values of a trial
by hand gets the same run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
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
