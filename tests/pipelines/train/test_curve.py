"""The curve in the run folder holds every step once, whatever happens to those that report it."""

import json
from pathlib import Path

import pytest

from consomme.base.errors import CheckpointError
from consomme.pipelines.train.checkpoint import META, TrainState
from consomme.pipelines.train.curve import CurveFile, StepBatch, StepPoint, read_curve
from consomme.storage.ledger.run_folder import RunFolder
from consomme.train.divergence import WINDOW


def points(first: int, last: int, loss: float = 1.0) -> list[StepPoint]:
    return [{"step": step, "loss": loss} for step in range(first, last + 1)]


def test_reported_steps_are_appended_and_replace_those_that_are_trained_again(
    tmp_path: Path,
) -> None:
    curve = CurveFile(str(tmp_path))
    assert curve.points == []
    curve.record(points(1, 3))
    curve.record(points(4, 9))
    # Training went back to the checkpoint of step 5.
    curve.record(points(6, 7, loss=2.0))
    expected = points(1, 5) + points(6, 7, loss=2.0)
    assert json.loads((tmp_path / "curve.json").read_text()) == expected
    # Another process resumes from the same checkpoint.
    resumed = CurveFile(str(tmp_path))
    resumed.record(points(6, 6, loss=3.0))
    assert read_curve(RunFolder.at(str(tmp_path))) == points(1, 5) + points(6, 6, loss=3.0)


def test_missing_steps_are_an_error(tmp_path: Path) -> None:
    curve = CurveFile(str(tmp_path))
    curve.record(points(1, 3))
    with pytest.raises(CheckpointError, match=r"ends at step 3, but training resumed at step 5"):
        curve.record(points(5, 6))


def test_a_logged_report_is_short() -> None:
    assert len(repr(StepBatch(points(1, 500)))) < 50


def test_a_checkpoint_holds_a_window_of_losses(tmp_path: Path) -> None:
    state = TrainState()
    for point in points(1, 100):
        state.record(point | {"loss": float(point["step"])})
    assert (state.step, len(state.losses), state.losses[-1]) == (100, WINDOW, 100.0)
    state.unreported = []
    state.save(tmp_path)
    assert (tmp_path / META).stat().st_size < 2000
    assert TrainState.load(tmp_path) == state
    assert TrainState.load(None) == TrainState()


def test_checkpoints_that_hold_the_curve_are_still_read(tmp_path: Path) -> None:
    old = {"curve": points(1, 80), "data": {"next_batch": 80}, "layers": [0, 4], "rollbacks": []}
    (tmp_path / META).write_text(json.dumps(old))
    state = TrainState.load(tmp_path)
    assert state.step == 80
    assert state.losses == [1.0] * WINDOW
    assert state.unreported == points(1, 80)
    assert state.layers == [0, 4]
