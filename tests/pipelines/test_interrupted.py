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

from consomme.base.errors import CheckpointError
from consomme.base.recipe import to_yaml
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store

pytestmark = pytest.mark.ray


def run_interrupted(
    verb: str,
    recipe: Any,
    folder: Path,
    is_time: Callable[[], bool],
    cluster: Mapping[str, str] | None = None,
    root: str = "",
) -> None:
    """Run a recipe elsewhere, press Ctrl-C when `is_time`, and run it again to the end.

    Elsewhere is `root`, or else `torn` in the folder.
    """
    path = folder / "torn.yaml"
    path.write_text(to_yaml(replace(recipe, root=root or str(folder / "torn"))))
    process = start(verb, path, cluster)
    deadline = time.monotonic() + 200
    while process.poll() is None and not is_time():
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.1)
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


def commits(folder: Path, number: int) -> Callable[[], bool]:
    return lambda: len(list(folder.glob("torn/*/*/commits/*/*.json"))) >= number


def test_score(score_recipe, scores, one_ray, tmp_path):
    """And by one actor instead of two."""
    recipe = replace(score_recipe, num_actors=1)
    run_interrupted("score", recipe, tmp_path, commits(tmp_path, 2), one_ray)
    parts = ("commits", "data", "rejects")
    assert files(run_below(tmp_path / "torn"), *parts) == files(Path(scores.url), *parts)


@pytest.mark.long
def test_train(sparse_recipe, sparse, s3_root, one_ray, tmp_path):
    """With checkpoints and the model in object storage."""

    def there():
        return [info.path for info in open_store(s3_root).list()]

    run_interrupted(
        "train",
        sparse_recipe,
        tmp_path,
        lambda: any(path.endswith("/meta.json") for path in there()),
        one_ray,
        root=s3_root,
    )
    assert any("/checkpoints/" in path and path.endswith("shards/.metadata") for path in there())
    (manifest,) = [path for path in there() if path.endswith("manifest.json")]
    run = f"{s3_root}/{manifest.removesuffix('/manifest.json')}"
    here = Path(model_folder(run))
    assert files(here, ".") == files(Path(model_folder(sparse.url)), ".")
    assert model_folder(f"{run}/model") == str(here)
    with pytest.raises(CheckpointError, match=r"no config.json in s3://.*nothing"):
        model_folder(f"{s3_root}/nothing")


@pytest.mark.long
@pytest.mark.vllm
def test_recaption(recaption_recipe, recaptions, one_ray, tmp_path):
    is_time = commits(tmp_path, 1)
    run_interrupted("recaption", recaption_recipe, tmp_path, is_time, one_ray)
    parts = ("commits", "data", "rejects")
    assert files(run_below(tmp_path / "torn"), *parts) == files(Path(recaptions.url), *parts)
