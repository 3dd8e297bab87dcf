"""A study of Optuna: proposes numbers, and learns from what they were worth.

What is proposed is a function of the seed and of what was told so far, in its order, so whoever
repeats a study with the same results gets the same proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")

_SEEDS = 1_000_003
"""Proposals of one seed; those of the next one have others."""


class Study:
    """Proposes trials one after the other; results may come in any order."""

    def __init__(
        self,
        directions: Sequence[Literal["maximize", "minimize"]],
        sampler: Callable[[int], Any],
        *,
        seed: int,
    ) -> None:
        """Begin.

        Args:
            directions: `maximize` or `minimize`, for each value of a trial.
            sampler: Makes a sampler of Optuna from a seed.
            seed: Of all proposals. Each has a sampler with a seed of its own, so that it does not
                depend on how many were proposed since the process began.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._study: Any = optuna.create_study(directions=list(directions), sampler=sampler(seed))
        self._sampler, self._seed = sampler, seed
        self._trials: list[Any] = []

    def __len__(self) -> int:
        """Return the number of trials that were proposed."""
        return len(self._trials)

    def ask(self, suggest: Callable[[Any], T]) -> T:
        """Propose the next trial.

        Args:
            suggest: Takes the values from a trial of Optuna.
        """
        self._study.sampler = self._sampler(self._seed * _SEEDS + len(self._trials))
        trial = self._study.ask()
        self._trials.append(trial)
        return suggest(trial)

    def enqueue(self, values: dict[str, Any]) -> None:
        """Let a later trial, the next one if none is waiting, have these values."""
        self._study.enqueue_trial(values)

    def tell(self, number: int, values: float | Sequence[float] | None) -> None:
        """Receive the result of a trial.

        Args:
            number: Of the trial, from 0, in the order of `ask`.
            values: One for each direction; None if the trial failed.
        """
        if values is None:
            self._study.tell(self._trials[number], state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(self._trials[number], values)


def sampler(name: str, **options: Any) -> Callable[[int], Any]:
    """Return what makes a sampler of Optuna from a seed.

    Args:
        name: Such as `TPESampler`.
        options: Of the sampler.
    """

    def make(seed: int) -> Any:
        import optuna

        return getattr(optuna.samplers, name)(seed=seed, **options)

    return make
