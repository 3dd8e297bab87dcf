"""Log lines and metrics of a training while it runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from consomme.base.telemetry import Progress
from consomme.pipelines.train.curve import StepPoint, read_curve
from consomme.pipelines.train.outputs import TRAINABLE
from consomme.storage.ledger.run_folder import RunFolder
from consomme.train.parts import Summary, TrainableRow, summarise

if TYPE_CHECKING:
    from consomme.pipelines.train.trackers import MetricsWriter

logger = logging.getLogger(__name__)


class StepMonitor:
    """Advances the progress line and feeds the trackers with the steps that are reported."""

    def __init__(
        self, folder: RunFolder, progress: Progress, writers: Sequence[MetricsWriter]
    ) -> None:
        """Skip the steps of earlier attempts: the trackers got them then.

        Args:
            folder: The run folder.
            progress: Counts steps.
            writers: Open trackers.
        """
        self.folder, self.progress, self.writers = folder, progress, list(writers)
        self.num_steps = len(read_curve(folder))
        """Highest step that was seen so far."""

        self._is_summary_logged = False
        self._is_closed = False

    def update(self, points: Sequence[StepPoint]) -> None:
        """Take the steps after `num_steps`."""
        if self._is_closed:
            return
        if points and not self._is_summary_logged:
            self._is_summary_logged = True
            rows = json.loads(self.folder.store.read(TRAINABLE))
            for line in summary_lines(TrainableRow(**row) for row in rows):
                logger.info("train: %s", line)
        self.num_steps += len(points)
        self.progress.advance(max(0, self.num_steps - self.progress.done))
        for point in points:
            for writer in list(self.writers):
                try:
                    writer.log(step_metrics(point), int(point["step"]))
                except Exception as error:  # noqa: BLE001 - a tracker must not stop a training.
                    self.writers.remove(writer)
                    logger.warning(
                        "train: %s failed and gets no more metrics: %s: %s",
                        type(writer).__name__.lstrip("_"),
                        type(error).__name__,
                        error,
                    )

    def close(self) -> None:
        """Ignore what is reported from now on: the trackers are about to be closed."""
        self._is_closed = True


def step_metrics(point: Mapping[str, float]) -> dict[str, float]:
    """Name the metrics of one step, for trackers and the metrics file."""
    return {
        "train/loss_nats": point["loss"],
        "train/step_s": point["seconds"],
        "train/grad_norm": point["grad_norm"],
        "train/learning_rate": point["lr"],
        "train/tokens_per_s": point["num_positions"] / point["seconds"],
    }


def _without_adapters(line: Summary) -> str:
    if not line.num_without_adapters:
        return ""
    return f"; {line.num_without_adapters:,} parameters of matrices have no adapters"


def summary_lines(rows: Iterable[TrainableRow]) -> list[str]:
    """Summarise what is trained: one line per part, and one for the whole model."""
    lines = summarise(rows)
    trained, every = (sum(getattr(x, k) for x in lines) for k in ("num_trained", "num_parameters"))
    return [
        *(
            f"{one.part}: {one.state}, {one.num_tensors} tensors, {one.num_trained:,} parameters"
            f" {'of' if one.state == 'full' else 'beside'} {one.num_parameters:,}, lr {one.lr:g}"
            + _without_adapters(one)
            if one.lr is not None
            else f"{one.part}: frozen, {one.num_parameters:,} parameters"
            for one in lines
            if one.num_parameters
        ),
        f"in all {trained:,} parameters are trained, {trained / every:.1%} of {every:,}",
    ]
