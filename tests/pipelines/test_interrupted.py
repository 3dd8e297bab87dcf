"""Ctrl-C in the middle of a stage, then the same command again: the bytes of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consomme.base.recipe import to_yaml

pytestmark = pytest.mark.ray


def run_interrupted(
    verb: str,
    recipe: Any,
    place: Path,
    is_time: Callable[[Path], bool],
    cluster: Mapping[str, str] | None = None,
) -> None:
    """Run a recipe at another place, press Ctrl-C when `is_time`, and run it again to the end."""
    path = place.with_suffix(".yaml")
    path.write_text(to_yaml(replace(recipe, root=str(place))))
    process = start(verb, path, cluster)
    deadline = time.monotonic() + 200
    while process.poll() is None and not is_time(place):
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it was interrupted"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-3000:]
    assert "run the same command again" in errors
    again = start(verb, path, cluster)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors[-3000:]


def start(verb: str, recipe: Path, cluster: Mapping[str, str] | None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "consomme.cli", verb, str(recipe)],
        env={**os.environ, **(cluster or {}), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background starts them deaf to SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def files(run: Path, *parts: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for part in parts
        for path in sorted((run / part).rglob("*"))
        if path.is_file()
    }


def run_below(root: Path) -> Path:
    (run,) = [path.parent for path in root.glob("*/*/manifest.json")]
    return run


def commits(number: int) -> Callable[[Path], bool]:
    return lambda root: len(list(root.glob("*/*/commits/*/*.json"))) >= number


def test_score(score_recipe, scores, one_ray, tmp_path):
    torn = tmp_path / "torn"
    run_interrupted("score", replace(score_recipe, num_actors=1), torn, commits(2), one_ray)
    parts = ("commits", "data", "rejects")
    assert files(run_below(torn), *parts) == files(Path(scores.url), *parts)


def test_train(sparse_recipe, sparse, one_ray, tmp_path):
    torn = tmp_path / "torn"
    run_interrupted(
        "train",
        sparse_recipe,
        torn,
        lambda root: any(root.glob("train/*/checkpoints/checkpoint_*/meta.json")),
        one_ray,
    )
    assert files(run_below(torn), "model") == files(Path(sparse.url), "model")


@pytest.mark.vllm
def test_recaption(recaption_recipe, recaptions, one_ray, tmp_path):
    torn = tmp_path / "torn"
    run_interrupted("recaption", recaption_recipe, torn, commits(1), one_ray)
    parts = ("commits", "data", "rejects")
    assert files(run_below(torn), *parts) == files(Path(recaptions.url), *parts)
