"""What a checkpoint holds beside weights and optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consomme.base.manifest import FileSum
from consomme.pipelines.train.curve import StepPoint
from consomme.storage.ledger.sums import read_sum
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.store import Store
from consomme.train.divergence import WINDOW

META = "meta.json"
"""`TrainState` of a checkpoint."""

WEIGHTS = "moved.safetensors"
"""In a checkpoint that is evaluated: the trained weights, whole tensors in any parallelism."""


CHECKPOINTS = "checkpoints"
"""Folder of a run with its checkpoints; Ray Train's name for the experiment."""

_SUMS = "sums-"


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


def upload(folder_url: str, rank: int, checkpoint: Any, name: str) -> Any:
    """Bring what one rank saved into the run folder, with the checksums of its files.

    Ray Train calls this in a thread while training continues.

    Args:
        folder_url: The run folder.
        rank: Of this worker.
        checkpoint: Ray Train's, in a local folder, which it deletes afterwards.
        name: Of the checkpoint in storage.

    Returns:
        The checkpoint in storage.
    """
    from pyarrow.fs import LocalFileSystem, copy_files
    from ray.train import Checkpoint

    from consomme.pipelines.train.ray_storage import storage_of

    local = Path(checkpoint.path)
    store = LocalStore(str(local))
    paths = sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
    sums = {path: dataclasses.asdict(read_sum(store, path)) for path in paths}
    (local / f"{_SUMS}{rank}.json").write_text(json.dumps(sums, sort_keys=True))
    place = storage_of(folder_url)
    system = place.get("storage_filesystem") or LocalFileSystem()
    target = f"{place['storage_path']}/{CHECKPOINTS}/{name}"
    system.create_dir(target)
    copy_files(
        str(local),
        target,
        source_filesystem=LocalFileSystem(),
        destination_filesystem=system,
        use_threads=False,
        chunk_size=64 * 2**20,
    )
    return Checkpoint(target, system)


def uploaded_sums(store: Store) -> dict[str, FileSum]:
    """Return the sums that were taken when checkpoints were uploaded, by path in the run folder.

    A checkpoint that was left behind by an interrupted attempt may lack some of its files.
    """
    files = {file.path: file.size for file in store.list(f"{CHECKPOINTS}/")}
    found: dict[str, FileSum] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        if name.startswith(_SUMS):
            content: dict[str, dict[str, Any]] = json.loads(store.read(path))
            found |= {f"{folder}/{inside}": FileSum(**one) for inside, one in content.items()}
    return {path: one for path, one in found.items() if files.get(path) == one.num_bytes}


@contextlib.contextmanager
def opened(checkpoint: Any) -> Iterator[Any]:
    """Download a Ray Train checkpoint for as long as it is read; None stays None."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as path:
        yield Path(path)
