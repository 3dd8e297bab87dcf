"""One trial of a sweep: its keys, its state, and what its checkpoints reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.sweep.keys import label


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial, and what came of it."""

    number: int
    """From 0, in the order they were asked for."""

    keys: dict[str, Any]
    """Recipe key -> value."""

    state: Literal["asked", "done", "stopped", "failed"] = "asked"
    reason: str = ""
    """Why it failed, or where it was stopped."""

    train: str = ""
    """Folder of the train run."""

    evaluate: str = ""
    """Folder of the evaluate run; empty if there is no benchmark."""

    value: float | None = None
    """What trials are compared by, of one that is done."""

    rungs: dict[str, float] = field(default_factory=dict)
    """Steps -> loss, where a stopper looked."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Of both runs; `optimizer_bytes` and `num_trainable` beside them."""

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"{self.number} ({label(self.keys)})"


STEP, LOSS = "step", "loss"
"""What a stopper compares: steps done, and the mean loss since the checkpoint before."""


def is_end(report: Mapping[str, Any]) -> bool:
    """Whether a report is a trial's last."""
    return "train" in report or "failure" in report


def checkpoint_losses(curve: list[dict[str, float]], every: int) -> list[float]:
    """Mean loss of the steps up to each checkpoint, from the one before it."""
    return [
        sum(point["loss"] for point in curve[at - every : at]) / every
        for at in range(every, len(curve) + 1, every)
    ]
