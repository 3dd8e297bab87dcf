"""Ctrl-C in the middle of a stage, then the same command again: the bytes of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consomme.pipelines import prepare

pytestmark = pytest.mark.ray
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    done = prepare.run(
        prepare.PrepareRecipe(
            name="pairs",
            root=str(tmp_path_factory.mktemp("pairs")),
            source={"name": "scenes", "num": 160},
            noise_fraction=0.3,
            bad_images=1,
        )
    )
    return f"{done.url}/data"


def command(verb: str, recipe: Path) -> list[str]:
    return [sys.executable, "-m", "consomme.cli", verb, str(recipe)]


def run_whole(verb: str, recipe: Path) -> None:
    done = subprocess.run(
        command(verb, recipe), env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run_both(verb: str, calm: Path, torn: Path, is_time: Callable[[], bool]) -> None:
    """Run one recipe undisturbed and, at the same time, another with Ctrl-C."""
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(run_whole, verb, calm)
        run_interrupted(verb, torn, is_time)
        whole.result()


def run_interrupted(verb: str, recipe: Path, is_time: Callable[[], bool]) -> None:
    """Start the command, press Ctrl-C when `is_time`, and run it again to the end."""
    process = subprocess.Popen(
        command(verb, recipe),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background starts them deaf to SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and not is_time():
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it was interrupted"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-3000:]
    assert "run the same command again" in errors
    run_whole(verb, recipe)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def files(root: Path, *parts: str) -> dict[str, bytes]:
    (run,) = [p.parent for p in root.glob("*/*/manifest.json")]
    return {
        str(path.relative_to(run)): path.read_bytes()
        for part in parts
        for path in sorted((run / part).rglob("*"))
        if path.is_file()
    }


def test_score(shards, tmp_path):
    text = "name: s\nroot: {root}\ninputs: [{shards}]\nmodel: package://models/nano\nunit_rows: 8\n"
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    run_both(
        "score",
        write(tmp_path / "a.yaml", text.format(root=calm, shards=shards)),
        write(tmp_path / "b.yaml", text.format(root=torn, shards=shards)),
        lambda: len(list(torn.glob("score/*/commits/*/*.json"))) >= 2,
    )
    assert files(torn, "commits", "data", "rejects") == files(calm, "commits", "data", "rejects")


def test_train(shards, tmp_path):
    text = (
        "name: t\nroot: {root}\ndata: [{{inputs: [{shards}]}}]\nmodel: package://models/nano\n"
        "num_steps: 12\nglobal_batch: 8\ncheckpoint_every: 4\nmax_reject_fraction: 0.1\n"
    )
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    run_both(
        "train",
        write(tmp_path / "a.yaml", text.format(root=calm, shards=shards)),
        write(tmp_path / "b.yaml", text.format(root=torn, shards=shards)),
        lambda: any(torn.glob("train/*/checkpoints/checkpoint_*/state.pt")),
    )
    assert files(torn, "model") == files(calm, "model")


@pytest.mark.vllm
def test_recaption(shards, tmp_path):
    text = (
        "name: r\nroot: {root}\ninputs: [{shards}]\nmodel: package://models/nano\n"
        "unit_rows: 8\nmax_tokens: 48\nmax_reject_fraction: 0.1\n"
    )
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    run_both(
        "recaption",
        write(tmp_path / "a.yaml", text.format(root=calm, shards=shards)),
        write(tmp_path / "b.yaml", text.format(root=torn, shards=shards)),
        lambda: len(list(torn.glob("recaption/*/commits/*/*.json"))) >= 1,
    )
    assert files(torn, "commits", "data", "rejects") == files(calm, "commits", "data", "rejects")
