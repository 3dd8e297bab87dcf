"""Early stopping: which trials of a sweep end before their last step.

Trials are compared by their training loss at checkpoints, so that a stopped trial can resume from
one later. The comparison is valid only for trials that train on the same data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Interval

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked
from consomme.base.registry import Registry


class Stopper(Protocol):
    """An early-stopping rule."""

    def problems(self, checkpoint_every: int, num_steps: int) -> list[str]:
        """Return why the rule cannot be applied to a training.

        Args:
            checkpoint_every: Steps between checkpoints of the training.
            num_steps: Its total number of steps.
        """


STOPPERS: Registry[Stopper] = Registry("stopper", "consomme/sweep/stoppers.py")


@STOPPERS.register("none")
@dataclass(frozen=True, kw_only=True)
class NoStopper:
    """Run every trial to its last step."""

    def problems(self, checkpoint_every: int, num_steps: int) -> list[str]:
        """Return no problem."""
        return []


@STOPPERS.register("asha")
@dataclass(frozen=True, kw_only=True)
class Asha(Checked):
    """Asynchronous successive halving (ASHA): at every rung, only the best trials continue.

    Rungs are at `grace_steps` times powers of `factor`. A trial continues after a rung if its loss
    is among the best 1/`factor` of all trials that have reached the rung so far. The first trials
    always are, so with few trials little is stopped; which ones depends on the order of arrival.
    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934.
    """

    grace_steps: PositiveInt
    """Steps that every trial runs; a multiple of the train recipe's `checkpoint_every`."""

    factor: Annotated[int, Interval(ge=2)] = 3
    """Reduction factor: one in this many trials continues at each rung."""

    def rung_steps(self, num_steps: int) -> list[int]:
        """Return the steps of all rungs below `num_steps`."""
        steps = []
        step = self.grace_steps
        while step < num_steps:
            steps.append(step)
            step *= self.factor
        return steps

    def should_continue(self, loss: float, losses: Sequence[float]) -> bool:
        """Whether a trial continues after a rung.

        Args:
            loss: Of this trial.
            losses: Of all trials that have reached the rung so far, including this one.
        """
        num_better = sum(other < loss for other in losses)
        return num_better < math.ceil(len(losses) / self.factor)

    def problems(self, checkpoint_every: int, num_steps: int) -> list[str]:
        """Return a problem if rungs are not at checkpoints, or the first one is at the end."""
        problems = []
        if self.grace_steps % checkpoint_every:
            problems.append(
                f"stopper.grace_steps: found {self.grace_steps}, expected a multiple of"
                f" train.checkpoint_every={checkpoint_every}: a trial is stopped where it saves a"
                " checkpoint"
            )
        if self.grace_steps >= num_steps:
            problems.append(
                f"stopper.grace_steps: found {self.grace_steps}, expected less than"
                f" train.num_steps={num_steps}, or no trial can be stopped"
            )
        return problems
