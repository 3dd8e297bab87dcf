"""What a sweep may put under one key of a recipe: listed values, or a range to draw from.

One decision is made here: numbers that are drawn are rounded to six digits, so that a trial can be
typed by hand and is then the same run.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry


class Suggests(Protocol):
    """What is needed of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Choose one of some values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number of a range."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose a whole number of a range."""


class Choice(Protocol):
    """The values of one key."""

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """Every value, in the order of a grid; None if they cannot be listed."""

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values to check a recipe with: all that can be listed, else the ends of the range."""

    def draw(self, rng: random.Random) -> Any:
        """Draw one value."""

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Let Optuna choose one value."""


CHOICES: Registry[Choice] = Registry("choice", "consomme/sweep/choices.py")


@CHOICES.register("choice")
@dataclass(frozen=True, kw_only=True)
class ListChoice:
    """One of some values of any kind: numbers, words, whole strategies."""

    values: tuple[Any, ...]
    """What is tried, in this order."""

    def __post_init__(self) -> None:
        """Check that there is something to try, and nothing twice."""
        if not self.values:
            raise RecipeError("values: found none, expected at least one")
        twice = [value for at, value in enumerate(self.values) if value in self.values[:at]]
        if twice:
            raise RecipeError(f"values: found {twice[0]!r} more than once")

    @property
    def listed(self) -> tuple[Any, ...]:
        """The values."""
        return self.values

    @property
    def samples(self) -> tuple[Any, ...]:
        """The values."""
        return self.values

    def draw(self, rng: random.Random) -> Any:
        """Draw one of the values."""
        return rng.choice(self.values)

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Let Optuna choose by position: it knows no values that are mappings."""
        return self.values[trial.suggest_categorical(key, list(range(len(self.values))))]


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Numbers between two ends, both included."""

    low: float
    """The smallest."""

    high: float
    """The largest."""

    def __post_init__(self) -> None:
        """Check the ends."""
        if not self.low < self.high:
            raise RecipeError(
                f"low: found {self.low}, expected less than high, which is {self.high}"
            )

    @property
    def listed(self) -> None:
        """There are too many."""
        return

    @property
    def samples(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


@CHOICES.register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformChoice(_Range):
    """Any number of a range, all alike."""

    def draw(self, rng: random.Random) -> float:
        """Draw a number."""
        return _rounded(rng.uniform(self.low, self.high), self)

    def suggest(self, trial: Suggests, key: str) -> float:
        """Let Optuna choose a number."""
        return _rounded(trial.suggest_float(key, self.low, self.high), self)


@CHOICES.register("log_uniform")
@dataclass(frozen=True, kw_only=True)
class LogUniformChoice(_Range):
    """Any number of a range, every factor alike: for learning rates."""

    def __post_init__(self) -> None:
        """Check the ends."""
        super().__post_init__()
        if self.low <= 0:
            raise RecipeError(f"low: found {self.low}, expected more than 0 for log_uniform")

    def draw(self, rng: random.Random) -> float:
        """Draw a number."""
        return _rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))), self)

    def suggest(self, trial: Suggests, key: str) -> float:
        """Let Optuna choose a number."""
        return _rounded(trial.suggest_float(key, self.low, self.high, log=True), self)


@CHOICES.register("int_uniform")
@dataclass(frozen=True, kw_only=True)
class IntUniformChoice:
    """Any whole number of a range, all alike."""

    low: int
    """The smallest."""

    high: int
    """The largest."""

    def __post_init__(self) -> None:
        """Check the ends."""
        if not self.low < self.high:
            raise RecipeError(
                f"low: found {self.low}, expected less than high, which is {self.high}"
            )

    @property
    def listed(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self.low, self.high + 1))

    @property
    def samples(self) -> tuple[int, int]:
        """Both ends."""
        return self.low, self.high

    def draw(self, rng: random.Random) -> int:
        """Draw a number."""
        return rng.randint(self.low, self.high)

    def suggest(self, trial: Suggests, key: str) -> int:
        """Let Optuna choose a number."""
        return trial.suggest_int(key, self.low, self.high)


def _rounded(value: float, limits: _Range) -> float:
    return min(max(float(f"{value:.6g}"), limits.low), limits.high)
