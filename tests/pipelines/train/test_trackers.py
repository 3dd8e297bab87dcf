"""Every metric reaches the tracker once, also if the run is interrupted and resumed."""

import importlib
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.pipelines.train.trackers import TRACKERS, opened

RECIPE = {
    "name": "t",
    "lr": 0.1,
    "data": [{"view": "x" * 9000}],
    "template": {"api_key": "canary-1"},
    "trackers": [{"name": "mlflow", "uri": "https://me:canary-2@host/x"}],
}


def write(node: dict[str, Any], folder: Path, steps: range) -> None:
    with opened((node,), str(folder), "t", "abcd1234", RECIPE) as writers:
        for step in steps:
            for writer in writers:
                writer.log({"train/loss_nats": 1.0 / step}, step)


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    write({"name": "tensorboard"}, tmp_path, range(1, 3))
    write({"name": "tensorboard"}, tmp_path, range(3, 5))
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found[event.step] = (value.tag, value.simple_value)
            at += 16 + length
    assert sorted(found) == [1, 2, 3, 4]
    assert found[4] == ("train/loss_nats", 0.25)


def test_mlflow(tmp_path: Path) -> None:
    import mlflow

    node = {"name": "mlflow", "uri": f"sqlite:///{tmp_path}/flow.db", "experiment": "e"}
    write(node, tmp_path, range(1, 3))
    write(node, tmp_path, range(3, 5))
    client = mlflow.MlflowClient(node["uri"])
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.1"
    assert "canary" not in str(run.data.params)
    history = client.get_metric_history(run.info.run_id, "train/loss_nats")
    assert [(one.step, one.value) for one in history] == [(k, 1.0 / k) for k in range(1, 5)]


@pytest.mark.slow
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    write({"name": "wandb", "mode": "offline"}, tmp_path, range(1, 3))
    (log,) = tmp_path.rglob("*.wandb")
    # Another process writes the file.
    until = time.monotonic() + 30
    while b"train/loss_nats" not in log.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"train/loss_nats" in log.read_bytes()
    assert b"abcd1234" in log.read_bytes()
    assert b"canary" not in log.read_bytes()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_ = importlib.import_module

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return import_(name, *rest, **more)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(RecipeError, match=r"wandb is not installed .*`pip install wandb`"):
        TRACKERS.build({"name": "wandb"})(str(tmp_path), "t", "m", {})


def test_trackers_are_closed_if_the_run_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with opened(({"name": "tensorboard"},), str(tmp_path), "t", "m", RECIPE) as writers:
            writers[0].log({"train/loss_nats": 1.0}, 1)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    (events,) = tmp_path.rglob("events*")
    assert b"train/loss_nats" in events.read_bytes()
