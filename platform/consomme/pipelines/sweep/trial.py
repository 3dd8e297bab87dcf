"""One trial of a sweep: its keys, its state, and the reports it makes while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.sweep.keys import label


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial and its result; stored as JSON in the run folder of the sweep."""

    number: int
    """From 0, in the order in which the searcher proposed them."""

    keys: dict[str, Any]
    """Recipe key -> value."""

    state: Literal["asked", "done", "stopped", "failed"] = "asked"
    """`asked`: proposed by the searcher, no result yet."""

    reason: str = ""
    """Why it failed, or where it was stopped."""

    train: str = ""
    """Folder of the train run."""

    evaluate: str = ""
    """Folder of the evaluate run; empty if there is no benchmark."""

    guards: str = ""
    """Folder of the evaluate run of its guards; empty if there are none."""

    value: float | None = None
    """Value of the sweep's metric, if the trial is done."""

    findings: list[dict[str, Any]] = field(default_factory=list)
    """What it has kept of each guard's benchmark; see `GuardFinding.plain`."""

    rungs: dict[str, float] = field(default_factory=dict)
    """Step -> loss, at the rungs of the stopper that the trial has reached."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of both runs, and `optimizer_bytes` and `num_trainable` of the training."""

    @property
    def passes(self) -> bool:
        """Whether it has lost no more than the guards allow."""
        return all(finding["passes"] for finding in self.findings)

    @property
    def told_value(self) -> float | None:
        """The value that the searcher learns: none if the trial may not be the best."""
        return self.value if self.passes else None

    @property
    def name(self) -> str:
        """Number and keys, for log lines and error messages."""
        return f"{self.number} ({label(self.keys)})"


STEP_KEY = "step"
"""Key of a trial's report: steps done."""

LOSS_KEY = "loss"
"""Key of a trial's report: mean training loss since the previous checkpoint, in nats per token."""


def is_final(report: Mapping[str, Any]) -> bool:
    """Whether a report is the last one of a trial that ran to its end or failed."""
    return "train" in report or "failure" in report


def checkpoint_losses(curve: list[dict[str, float]], every: int) -> list[float]:
    """Return the mean training loss between consecutive checkpoints.

    Args:
        curve: Metrics of each step.
        every: Steps between checkpoints.
    """
    return [
        sum(point["loss"] for point in curve[step - every : step]) / every
        for step in range(every, len(curve) + 1, every)
    ]
