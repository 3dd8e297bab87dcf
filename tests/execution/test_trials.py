"""Trials on Ray Tune: lost processes, errors of ours, and those of others."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import CheckpointError, ClusterError
from consomme.execution.errors import UnexpectedError
from consomme.execution.session import ray_session
from consomme.execution.tune import MAX_LOST, run_trials

pytestmark = pytest.mark.ray


class Listed:
    """Trials of a list."""

    def __init__(self, trials: list[dict[str, Any]]) -> None:
        self.waiting = list(trials)
        self.told: dict[str, Mapping[str, Any] | None] = {}

    @property
    def is_finished(self) -> bool:
        return not self.waiting

    def ask(self) -> dict[str, Any] | None:
        return self.waiting.pop(0) if self.waiting else None

    def tell(self, config: dict[str, Any], result: Mapping[str, Any] | None) -> None:
        assert config["name"] not in self.told
        self.told[config["name"]] = result


class Fragile:
    """Fails as a trial asks for, and counts its tries in a file."""

    def __init__(self, folder: str, opens: bool) -> None:
        if not opens:
            raise CheckpointError("model: found nothing")
        self.folder = Path(folder)
        self.config: dict[str, Any] = {}

    def start(self, config: dict[str, Any]) -> None:
        self.config = config

    def step(self) -> dict[str, Any]:
        name = self.config["name"]
        with (self.folder / name).open("a") as file:
            file.write("x")
        num_tries = len((self.folder / name).read_text())
        if num_tries <= self.config.get("killed", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if "raises" in self.config:
            raise self.config["raises"]
        return {"score": len(name), "done": True}

    def stop(self) -> None:
        """Nothing to free."""


def ran(tmp_path: Path, *trials: dict[str, Any], opens: bool = True) -> Any:
    source = Listed(list(trials))
    first = source.ask()
    assert first is not None
    parameters = {"folder": str(tmp_path), "opens": opens}
    with ray_session():
        errors = run_trials(
            source, first, Fragile, parameters, resources={"CPU": 0.5}, max_concurrent=1
        )
    tries = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    return source.told, tries, errors


def test_a_lost_process_costs_one_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told, tries, errors = ran(
        tmp_path, {"name": "a"}, {"name": "lost", "killed": MAX_LOST}, {"name": "later"}
    )
    assert errors == []
    assert {name: result["score"] for name, result in told.items()} == {
        "a": 1, "lost": 4, "later": 5
    }  # fmt: skip
    assert tries == {"a": 1, "lost": MAX_LOST + 1, "later": 1}
    assert caplog.text.count("the process of a trial was lost; it begins again") == MAX_LOST


def test_errors_are_not_tried_again_and_come_home(tmp_path: Path) -> None:
    told, tries, errors = ran(
        tmp_path,
        {"name": "ours", "raises": CheckpointError("tensor lm_head is missing")},
        {"name": "other", "raises": ZeroDivisionError("a bug")},
        {"name": "dies", "killed": 99},
        {"name": "good"},
    )
    assert [type(error) for error in errors] == [CheckpointError, UnexpectedError, ClusterError]
    assert str(errors[0]) == "tensor lm_head is missing"
    assert "ZeroDivisionError: a bug" in str(errors[1])
    assert f"was lost {MAX_LOST + 1} times" in str(errors[2])
    assert tries == {"ours": 1, "other": 1, "dies": MAX_LOST + 1, "good": 1}
    assert told.pop("good")["score"] == 4
    assert told == {"ours": None, "other": None, "dies": None}


def test_a_runner_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    told, tries, errors = ran(tmp_path, {"name": "a"}, opens=False)
    assert ([str(error) for error in errors], told) == (["model: found nothing"], {"a": None})
    assert tries == {}
