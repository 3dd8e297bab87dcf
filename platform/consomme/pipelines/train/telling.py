"""Log lines and metrics of a training while it runs."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from consomme.base.telemetry import Progress
from consomme.pipelines.train.outputs import CURVE, TRAINABLE
from consomme.storage.ledger.run_folder import RunFolder
from consomme.train.parts import TrainableRow, summarise

if TYPE_CHECKING:
    from consomme.pipelines.train.trackers import MetricsWriter

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _watch(
    folder: RunFolder, progress: Progress, writers: Sequence[MetricsWriter]
) -> Iterator[None]:
    """Advance the progress line by what rank 0 writes into the run folder, wherever it runs.

    Steps that are new are handed on to the sinks; those of an earlier attempt were then.
    """
    done = threading.Event()
    told_steps = len(_steps(folder))

    def look() -> None:
        nonlocal told_steps
        is_told = False
        while True:
            # The curve is read whole: so the longer it is, the more seldom.
            ended = done.wait(max(2.0, told_steps / 1000))
            if not is_told and folder.store.exists(TRAINABLE):
                is_told = True
                rows = json.loads(folder.store.read(TRAINABLE))
                for line in summary_lines(TrainableRow(**row) for row in rows):
                    logger.info("train: %s", line)
            steps = _steps(folder)
            progress.advance(max(0, len(steps) - progress.done))
            for point in steps[told_steps:]:
                for writer in writers:
                    writer.log(step_metrics(point), int(point["step"]))
            told_steps = max(told_steps, len(steps))
            if ended:
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _steps(folder: RunFolder) -> list[dict[str, float]]:
    if not folder.store.exists(CURVE):
        return []
    steps: list[dict[str, float]] = json.loads(folder.store.read(CURVE))
    return steps


def step_metrics(point: Mapping[str, float]) -> dict[str, float]:
    """Name the figures of a step."""
    return {
        "train/loss_nats": point["loss"],
        "train/step_s": point["seconds"],
        "train/grad_norm": point["grad_norm"],
        "train/learning_rate": point["lr"],
        "train/tokens_per_s": point["num_positions"] / point["seconds"],
    }


def summary_lines(rows: Iterable[TrainableRow]) -> list[str]:
    """Say what is trained, a line for each part, and one for all of it."""
    lines = summarise(rows)
    trained, every = (sum(getattr(x, k) for x in lines) for k in ("num_trained", "num_parameters"))
    return [
        *(
            f"{one.part}: {one.state}, {one.num_tensors} tensors, {one.num_trained:,} parameters"
            f" {'of' if one.state == 'full' else 'beside'} {one.num_parameters:,}, lr {one.lr:g}"
            if one.lr is not None
            else f"{one.part}: frozen, {one.num_parameters:,} parameters"
            for one in lines
            if one.num_parameters
        ),
        f"in all {trained:,} parameters are trained, {trained / every:.1%} of {every:,}",
    ]
