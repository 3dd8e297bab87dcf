"""Every way in which a run ends has its exit code, and leaves its reason in the run folder."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from consomme.base.errors import (
    CheckpointError,
    ClusterError,
    ConsommeError,
    DataError,
    RecipeError,
    SupersededError,
    TerminatedError,
)
from consomme.base.manifest import Manifest
from consomme.base.needs import Need
from consomme.base.sample import ImageFile
from consomme.base.schema import runtime
from consomme.cli import run_command
from consomme.execution import capacity
from consomme.execution.capacity import Capacity, problems
from consomme.execution.errors import find_known
from consomme.execution.failure import exit_code_of
from consomme.execution.runs import Run
from consomme.execution.session import _job_env
from consomme.ops import status
from consomme.storage.ledger import attempts
from consomme.storage.ledger.run_folder import FAILURE, RunFolder


@dataclass(frozen=True, kw_only=True)
class SmallRecipe:
    name: str = "small"
    root: str = runtime("runs")


def run_that_ends(root: Path, error: BaseException | None) -> RunFolder:
    run = Run.open("score", SmallRecipe(root=str(root)), None)

    def body(run: Run[None]) -> Manifest:
        attempts.start(run.folder.store)
        if error is not None:
            raise error
        return run.finish()

    if error is None:
        run.once(body)
    else:
        with pytest.raises(type(error)):
            run.once(body)
    return run.folder


def a_bug() -> Exception:
    return KeyError("a bug")


def of_unit(error: ConsommeError) -> ConsommeError:
    error.unit = "data-007"
    return error


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (RecipeError("root: found x"), 2, "change the recipe"),
        (of_unit(DataError("a.tar is\nno tar")), 2, "mend the data"),
        (CheckpointError("no config.json"), 2, "replace the model"),
        (ClusterError("the disk is full"), 75, "run the same command again"),
        (TerminatedError(), 143, "run the same command again"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (a_bug(), 1, "a bug in consomme"),
    ],
)
def test_the_reason_stays_in_the_run_folder(
    tmp_path: Path, error: BaseException, code: int, advice: str
) -> None:
    folder = run_that_ends(tmp_path, error)
    failure = json.loads(folder.store.read(FAILURE))
    assert failure["code"] == code == exit_code_of(error)
    assert failure["class"] == type(error).__name__
    assert failure["message"] == (str(error) or type(error).__name__)
    assert advice in failure["advice"]
    assert failure["attempt"] == 1
    assert failure["unit"] == getattr(error, "unit", "")
    assert ("Traceback" in failure["traceback"]) == (code == 1)
    shown = status.describe_run(folder.url)
    assert all(line in shown for line in failure["message"].splitlines())
    assert advice in shown
    assert ("again to resume" in shown) == (code in (130, 143)), "the state gives no other advice"
    if failure["unit"]:
        assert "unit data-007" in shown
    seen = status.read_status(folder.url)
    assert seen.state == ("stopped" if code in (130, 143) else "failed")
    assert run_command(["report", folder.url]) == 0
    report = (Path(folder.url) / "report.html").read_text()
    assert advice in report
    assert failure["class"] in report
    with pytest.raises(DataError, match=rf"ended with {failure['class']}"):
        folder.manifest()
    # The next attempt, which succeeds, leaves no trace of it.
    run_that_ends(tmp_path, None)
    assert not folder.store.exists(FAILURE)
    assert status.read_status(folder.url).state == "done"


def test_an_attempt_that_was_overtaken_says_nothing_about_the_newer_one(tmp_path: Path) -> None:
    folder = run_that_ends(tmp_path, SupersededError("attempt 1 was overtaken"))
    assert not folder.store.exists(FAILURE)


BEATING = """
import sys, time
from consomme.execution.heartbeat import Heartbeat
from consomme.storage.stores.open import open_store
with Heartbeat(open_store(sys.argv[1])):
    time.sleep(60)
"""


def test_a_driver_that_was_killed_is_seen_at_once(tmp_path: Path) -> None:
    folder = run_that_ends(tmp_path, ClusterError("before"))
    folder.store.delete(FAILURE)
    folder.store.delete("progress.json")
    process = subprocess.Popen([sys.executable, "-c", BEATING, folder.url])
    deadline = time.monotonic() + 60
    while not folder.store.exists("progress.json"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status.read_status(folder.url).state == "running"
    assert "last heartbeat 0 s ago" in status.describe_run(folder.url)
    process.kill()
    process.wait()
    assert status.read_status(folder.url).state == "gone"
    assert "ended without a word" in status.describe_run(folder.url)


def test_a_heartbeat_from_elsewhere_is_judged_by_its_age(tmp_path: Path) -> None:
    folder = run_that_ends(tmp_path, ClusterError("before"))
    folder.store.delete(FAILURE)
    beat = {"attempt": 1, "state": "running", "time": 1000.0, "host": "node-7", "pid": os.getpid()}
    folder.store.write("progress.json", json.dumps(beat).encode())
    assert status.read_status(folder.url, now=1020.0).state == "running"
    assert "last heartbeat 20 s ago" in status.describe(
        status.read_status(folder.url, now=1020.0), 1020.0
    )
    assert status.read_status(folder.url, now=1040.0).state == "silent"


# --- what the cluster does not have -----------------------------------------------------------

SMALL = Capacity(where="this machine", cpus=2.0, gpus=0.0, node_cpus=2.0)


def test_needs_are_added_up_and_compared() -> None:
    fits = [Need(key="min_actors=2", count=2, cpus=0.8)]
    assert problems(fits, SMALL) == []
    (found,) = problems([Need(key="num_workers=3", count=3, cpus=1.0)], SMALL)
    assert found == ("num_workers=3: needs 3 CPUs at the same time, and this machine has 2")
    (found,) = problems([*fits, Need(key="evaluation.gpus=1", gpus=1.0)], SMALL)
    assert found.startswith("evaluation.gpus=1: needs 1 GPUs")
    spread = Capacity(where="the cluster", cpus=8.0, gpus=0.0, node_cpus=2.0)
    (found,) = problems([Need(key="cpus_per_worker=4", cpus=4.0)], spread)
    assert "on one node, and the largest of the cluster has 2" in found


VERBS = {
    "train": "{name: t, model: package://models/nano, data: [{inputs: [D]}],"
    " evaluation: {data: [{inputs: [D]}], gpus: 1}}",
    "train wide": "{name: t, model: package://models/nano, data: [{inputs: [D]}],"
    " num_workers: 500, global_batch: 500}",
    "score": "{name: s, model: package://models/nano, inputs: [D], engine: vllm,"
    " tensor_parallel: 8}",
    "score wide": "{name: s, model: package://models/nano, inputs: [D], min_actors: 999}",
    "recaption": "{name: r, model: package://models/nano, inputs: [D],"
    " engine: {name: vllm, tensor_parallel: 8}}",
    "tag": "{name: t, taggers: [{name: text}], inputs: [D], min_actors: 999}",
    "dedup": "{name: d, inputs: [D], min_actors: 999}",
    "evaluate": "{name: e, models: {a: package://models/nano, b: package://models/nano,"
    " c: package://models/nano}, min_actors: 999, benchmarks: [{name: scene_ocr}]}",
    "sweep": "{name: s, train: {name: t, model: package://models/nano, data: [{inputs: [D]}],"
    " global_batch: 500}, space: {num_workers: {name: choice, values: [1, 500]}}}",
    "loop": "{name: l, stages: [{name: p, verb: prepare, recipe: {source: {name: scenes, num: 2}}},"
    " {name: s, verb: score, recipe: {model: package://models/nano, inputs: ['@p/data'],"
    " min_actors: 999}}]}",
}


@pytest.mark.parametrize("case", VERBS)
def test_what_the_machine_does_not_have_is_refused_before_anything_starts(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(capacity, "this_machine", lambda: SMALL)
    data = tmp_path / "data"
    data.mkdir()
    from consomme.base.sample import Sample, caption_turns
    from consomme.datasets.scenes import encode, make_scene, render
    from consomme.storage.writers import tar_bytes

    sample = Sample(
        sample_id="a",
        images=(ImageFile(data=encode(render(make_scene(1))), name="a.png"),),
        turns=caption_turns("a red circle"),
        source="data",
        meta={},
    )
    (data / "a.tar").write_bytes(tar_bytes([sample]))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(VERBS[case].replace("D]", f"{data}]"))
    root = tmp_path / "runs"
    code = run_command([case.split()[0], str(recipe), f"root={root}"])
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert "and this machine has" in shown
    assert not list(root.rglob("recipe.yaml")), "nothing was started"
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.ray
def test_this_machine_is_counted_as_ray_counts_it(one_ray: object) -> None:
    import ray

    machine, there = capacity.this_machine(), ray.cluster_resources()
    assert (machine.cpus, machine.gpus) == (there["CPU"], there.get("GPU", 0.0))
    assert capacity.cluster().cpus == machine.cpus


# --- the environment of a job -----------------------------------------------------------------


def test_what_a_job_sets_for_its_workers_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _job_env()["OMP_NUM_THREADS"] == "1"
    config = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    left = _job_env()
    assert not {"OMP_NUM_THREADS", "HF_HUB_OFFLINE"} & left.keys()
    assert left["TOKENIZERS_PARALLELISM"] == "false"
    for odd in ("{}", '{"runtime_env": null}', '{"runtime_env": {"env_vars": null}}'):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", odd)
        assert "OMP_NUM_THREADS" in _job_env()


def test_a_job_s_log_says_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray job submit` returns 1 whatever it was."""
    assert run_command(["score", "nowhere.yaml"]) == 2
    assert "exit code" not in capsys.readouterr().err
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_command(["score", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "consomme score: exit code 2 (something to change; starting again changes nothing)"
    )


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (PermissionError(errno.EACCES, "denied", "/tmp/x"), RecipeError),
        (OSError(errno.EROFS, "read-only", "/tmp/x"), RecipeError),
        (OSError(errno.ENOSPC, "full", "/tmp/x"), ClusterError),
        (OSError(errno.ESTALE, "stale", "/tmp/x"), ClusterError),
        (OSError(errno.EACCES, "without a file"), None),
        (FileNotFoundError(errno.ENOENT, "missing", "/tmp/x"), None),
        (ValueError("a bug"), None),
    ],
)
def test_errors_of_the_system_are_no_bugs(error: Exception, known: type | None) -> None:
    """A cache in a folder of another user, a full disk: files that go through no store."""
    assert isinstance(find_known(error), known or type(None))
    wrapped = RuntimeError("in a library")
    wrapped.__cause__ = error
    assert (find_known(wrapped) is None) == (known is None)


@pytest.mark.parametrize("root", ["/dev/null/runs", "/proc/runs", "/sys/runs"])
def test_a_root_that_cannot_be_written_to_is_a_mistake(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "p.yaml"
    recipe.write_text("{name: p, source: {name: scenes, num: 2}}")
    assert run_command(["prepare", str(recipe), f"root={root}"]) == 2
    shown = capsys.readouterr().err
    assert "root=FOLDER" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_without_a_home_it_works(home: str | None, tmp_path: Path) -> None:
    recipe = tmp_path / "p.yaml"
    recipe.write_text(f"{{name: p, root: {tmp_path}/runs, source: {{name: scenes, num: 2}}}}")
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    env |= {"HOME": home} if home else {}
    command = [sys.executable, "-m", "consomme.cli", "prepare", str(recipe)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


WAITING = """
import sys, time
from dataclasses import dataclass
from consomme.base.schema import runtime
from consomme.cli import main
from consomme.execution.runs import Run

@dataclass(frozen=True, kw_only=True)
class WaitingRecipe:
    name: str = "w"
    root: str = runtime("runs")

def body(run):
    print("begun", flush=True)
    time.sleep(60)

main(WaitingRecipe, lambda recipe: Run.open("waiting", recipe, None).once(body))
"""


def test_sigterm_ends_with_143_and_says_so(tmp_path: Path) -> None:
    script = tmp_path / "w.py"
    script.write_text(WAITING)
    recipe = tmp_path / "w.yaml"
    recipe.write_text(f"{{root: {tmp_path}/runs}}")
    process = subprocess.Popen(
        [sys.executable, str(script), str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "ended by SIGTERM" in errors
    assert "Traceback" not in errors
    (url,) = (tmp_path / "runs").glob("waiting/*")
    assert json.loads((url / "progress.json").read_text())["state"] == "stopped: SIGTERM"
    assert json.loads((url / FAILURE).read_text())["code"] == 143
    assert "stopped: SIGTERM" in status.describe_run(str(url))
