"""The training curve: what workers report of each step, and the file it ends up in.

`curve.json` has one writer, the process that receives the workers' reports. It is written before
Ray Train registers the checkpoint that follows the reported steps, so a run that resumes from a
checkpoint finds all steps up to it in the file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from consomme.base.errors import CheckpointError
from consomme.pipelines.train.outputs import CURVE
from consomme.storage.ledger.run_folder import RunFolder

StepPoint = dict[str, float]
"""A `StepReport` as plain values: one entry of `curve.json`."""

STEPS = "steps"
"""Key of a `StepBatch` among the metrics that rank 0 reports."""


@dataclass(frozen=True)
class StepBatch:
    """Consecutive steps of one report."""

    points: list[StepPoint] = field(repr=False)
    """Left out of the repr: Ray Train logs every report."""


class CurveFile:
    """`curve.json` of a run folder."""

    def __init__(self, folder_url: str) -> None:
        """Name the file; it is read when it is first needed.

        Args:
            folder_url: The run folder.
        """
        self.folder_url = folder_url

    @functools.cached_property
    def points(self) -> list[StepPoint]:
        """All steps so far, from step 1."""
        return read_curve(RunFolder.at(self.folder_url))

    def record(self, points: Sequence[StepPoint]) -> None:
        """Append steps and write the file.

        Steps that are there already are replaced, with all that follow: a run that went back to a
        checkpoint reports them again.

        Raises:
            CheckpointError: Steps are missing in between.
        """
        first = int(points[0]["step"])
        if first > len(self.points) + 1:
            raise CheckpointError(
                f"{self.folder_url}: {CURVE} ends at step {len(self.points)}, but training resumed"
                f" at step {first}; restore the file, or delete the run folder to start again"
            )
        self.points[first - 1 :] = points
        RunFolder.at(self.folder_url).store.write(CURVE, json.dumps(self.points).encode())


def read_curve(folder: RunFolder) -> list[StepPoint]:
    """Read the steps of a run; empty if it has none yet."""
    if not folder.store.exists(CURVE):
        return []
    points: list[StepPoint] = json.loads(folder.store.read(CURVE))
    return points
