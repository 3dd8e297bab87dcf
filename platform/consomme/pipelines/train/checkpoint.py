"""What a checkpoint holds beside weights and optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consomme.pipelines.train.curve import StepPoint
from consomme.train.divergence import WINDOW

META = "meta.json"
"""`TrainState` of a checkpoint."""

WEIGHTS = "moved.safetensors"
"""In a checkpoint that is evaluated: the trained weights, whole tensors in any parallelism."""


@dataclass
class TrainState:
    """State of a run at a step, apart from weights and optimizer."""

    step: int = 0
    """Steps done."""

    losses: list[float] = field(default_factory=list)
    """Of the last steps, at most `WINDOW` of them: what the next loss is compared with."""

    unreported: list[StepPoint] = field(default_factory=list)
    """Steps that are not reported yet; none in a checkpoint, which is reported after its steps."""

    data: dict[str, Any] | None = None
    """Position in the data where the next step begins; None for the beginning."""

    layers: list[int] | None = None
    """Layers that were selected at the start."""

    scores: list[float] | None = None
    """One per layer, if layers were selected by score."""

    unused: list[str] | None = None
    """Parameters that were frozen because the loss does not depend on them."""

    rollbacks: list[str] = field(default_factory=list)
    """Why the run went back to a checkpoint, each time."""

    @classmethod
    def load(cls, checkpoint: Path | None) -> TrainState:
        """Read the state of a checkpoint; without one, a run that has not begun."""
        if checkpoint is None:
            return cls()
        meta = json.loads((checkpoint / META).read_text())
        # Checkpoints used to hold the whole curve, and `curve.json` could lag behind them.
        curve: list[StepPoint] | None = meta.pop("curve", None)
        if curve is not None:
            losses = [point["loss"] for point in curve[-WINDOW:]]
            meta |= {"step": len(curve), "losses": losses, "unreported": curve}
        return cls(**meta)

    def record(self, point: StepPoint) -> None:
        """Count a finished step."""
        self.step = int(point["step"])
        self.losses = [*self.losses, point["loss"]][-WINDOW:]
        self.unreported.append(point)

    def save(self, checkpoint: Path) -> None:
        """Write the state into a checkpoint."""
        (checkpoint / META).write_text(json.dumps(dataclasses.asdict(self)))


@contextlib.contextmanager
def opened(checkpoint: Any) -> Iterator[Any]:
    """Download a Ray Train checkpoint for as long as it is read; None stays None."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as path:
        yield Path(path)
