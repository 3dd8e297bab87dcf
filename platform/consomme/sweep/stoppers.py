"""When a trial is given up before its end.

One decision is made here: trials are compared by their training loss at checkpoints, so that what
was given up can go on from one later. Compare only trials that train on the same data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry


class Stopper(Protocol):
    """Gives trials up."""

    def problems(self, checkpoint_every: int, num_steps: int) -> list[str]:
        """Say what does not fit a trial that keeps a checkpoint every so many steps."""


STOPPERS: Registry[Stopper] = Registry("stopper", "consomme/sweep/stoppers.py")


@STOPPERS.register("none")
@dataclass(frozen=True, kw_only=True)
class NoStopper:
    """Train every trial to its end."""

    def problems(self, checkpoint_every: int, num_steps: int) -> list[str]:
        """Everything fits."""
        return []


@STOPPERS.register("asha")
@dataclass(frozen=True, kw_only=True)
class Asha:
    """Let the better part of the trials go on at every rung: asynchronous successive halving.

    Rungs are at `grace_steps` times powers of `factor`. A trial that reaches a rung goes on if its
    loss is among the best 1/`factor` of all that have reached it; the first ones always are, so
    with few trials little is stopped. Which are stopped depends on the order in which they arrive.
    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934.
    """

    grace_steps: int
    """Steps that every trial gets; a multiple of the train recipe's `checkpoint_every`."""

    factor: int = 3
    """One in so many goes on."""

    def __post_init__(self) -> None:
        """Check both."""
        if self.grace_steps < 1:
            raise RecipeError(f"grace_steps: found {self.grace_steps}, expected at least 1")
        if self.factor < 2:
            raise RecipeError(f"factor: found {self.factor}, expected at least 2")

    def rungs(self, num_steps: int) -> list[int]:
        """Steps at which a trial of so many steps may be given up."""
        found = []
        step = self.grace_steps
        while step < num_steps:
            found.append(step)
            step *= self.factor
        return found

    def goes_on(self, loss: float, reached: Sequence[float]) -> bool:
        """Whether a trial goes on from a rung.

        Args:
            loss: Its own.
            reached: Of all trials that have reached the rung so far, itself included.
        """
        better = sum(other < loss for other in reached)
        return better < math.ceil(len(reached) / self.factor)

    def problems(self, checkpoint_every: int, num_steps: int) -> list[str]:
        """Rungs have to be at checkpoints, and the first one before the end."""
        found = []
        if self.grace_steps % checkpoint_every:
            found.append(
                f"stopper.grace_steps: found {self.grace_steps}, expected a multiple of"
                f" train.checkpoint_every={checkpoint_every}: a trial is given up where it keeps a"
                " checkpoint"
            )
        if self.grace_steps >= num_steps:
            found.append(
                f"stopper.grace_steps: found {self.grace_steps}, expected less than"
                f" train.num_steps={num_steps}, or no trial can be given up"
            )
        return found
