"""What a training run writes into its checkpoints, beside weights and optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

META = "meta.json"
"""What a run has seen so far."""

WEIGHTS = "moved.safetensors"
"""In a checkpoint that is evaluated: what moves, whole, however the model was spread."""


@dataclass
class TrainState:
    """What a run knows at a checkpoint, apart from weights and optimizer."""

    curve: list[dict[str, float]] = field(default_factory=list)
    """Of all steps done."""

    data: dict[str, Any] | None = None
    """Where in the data the next step begins."""

    layers: list[int] | None = None
    """Which were selected at the start."""

    scores: list[float] | None = None
    """Of the layers, if they were selected by one."""

    unused: list[str] | None = None
    """Parameters that were frozen because the loss does not reach them."""

    rollbacks: list[str] = field(default_factory=list)
    """Why the run went back to a checkpoint, each time."""

    @classmethod
    def of(cls, checkpoint: Path | None) -> TrainState:
        """Read it from a checkpoint; empty without one."""
        return cls(**json.loads((checkpoint / META).read_text())) if checkpoint else cls()

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.curve)

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        (checkpoint / META).write_text(json.dumps(dataclasses.asdict(self)))


@contextlib.contextmanager
def opened(checkpoint: Any) -> Iterator[Any]:
    """Bring a checkpoint here, once, for as long as it is read; None stays None."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as path:
        yield Path(path)
