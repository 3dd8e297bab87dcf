"""What a driver does when Ray's own processes die, or it is told to end, in the middle of a run."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.chaos import harness
from tests.chaos.cluster import small_cluster

from consomme.storage.ledger.run_folder import FAILURE

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LOST = {"gcs": "/gcs_server", "raylet": "/raylet"}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("raylet", marks=pytest.mark.long),
        pytest.param("gcs", marks=pytest.mark.long),
        "driver",
    ],
)
def test_a_loss_in_the_middle_of_a_run(what: str, tmp_path: Path) -> None:
    """Exit code 75 (143 for SIGTERM), the reason beside the data, no stack trace; then it ends."""
    shards = str(tmp_path / "shards")
    harness.write_shards(shards, 4)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    job = harness.job(
        tmp_path, str(tmp_path / "runs"), shards, environment, unit_seconds=1.0, num_actors=1
    )
    process = job.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/pixels/*/commits/*/*.json")):
        assert time.monotonic() < deadline, job.tail()
        assert process.poll() is None, job.tail()
        time.sleep(0.05)
    if what == "driver":
        os.kill(process.pid, signal.SIGTERM)
    else:
        below = harness.descendants(process.pid)
        (pid,) = [p for p in below if harness.command_of(p).partition(" ")[0].endswith(LOST[what])]
        os.kill(pid, signal.SIGKILL)
    children = harness.descendants(process.pid)
    code = process.wait(60)
    log = job.tail()
    assert code == (143 if what == "driver" else 75), log
    assert "Traceback" not in log
    assert "run the same command again to go on" in log
    (url,) = tmp_path.glob("runs/pixels/*")
    failure = json.loads((url / FAILURE).read_text())
    assert failure["code"] == code
    assert "run the same command again" in failure["advice"]
    beat = json.loads((url / "progress.json").read_text())
    assert beat["state"].startswith("stopped"), beat
    deadline = time.monotonic() + 30
    while any(harness.command_of(pid).startswith("ray::") for pid in children):
        assert time.monotonic() < deadline, "workers stay behind"
        time.sleep(0.2)
    if what == "gcs":
        job.finish()
        assert not (url / FAILURE).exists()


def waiting(folder: Path) -> harness.Job:
    """A run that waits in Ray's own code, with a Ray of its own."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"root: {folder}/runs\n")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    program = Path(__file__).with_name("waiting.py")
    return harness.Job(recipe, environment, folder / "log.txt", program=program)


def first(process: "subprocess.Popen[bytes]", name: str, most_s: float = 120) -> int:
    """Wait for a process below another one, by how its name ends, and return its id."""
    deadline = time.monotonic() + most_s
    while True:
        for pid in harness.descendants(process.pid):
            if harness.command_of(pid).partition(" ")[0].endswith(name):
                return pid
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_loss(job: harness.Job, code: int, folder: Path, what: str) -> None:
    """The one message is that of the loss, and so is the stored reason."""
    assert code == 75, job.tail()
    assert f"the Ray cluster failed: its {what} is gone" in job.tail()
    assert "interrupted" not in job.tail()
    (failure,) = folder.glob("runs/waiting/*/failure.json")
    assert json.loads(failure.read_text())["code"] == 75


def test_a_raylet_that_is_lost_while_the_driver_waits_in_ray(tmp_path: Path) -> None:
    """Ray makes a `KeyboardInterrupt` of what interrupts its waiting."""
    job = waiting(tmp_path)
    process = job.start()
    first(process, "ray::asleep")
    os.kill(first(process, LOST["raylet"]), signal.SIGKILL)
    check_loss(job, process.wait(60), tmp_path, "raylet")


def test_a_gcs_that_is_lost_while_ray_starts(tmp_path: Path) -> None:
    """Ray itself would wait for a minute and end the process with exit code 1."""
    job = waiting(tmp_path)
    process = job.start()
    first(process, LOST["raylet"])
    os.kill(first(process, LOST["gcs"]), signal.SIGKILL)
    check_loss(job, process.wait(50), tmp_path, "GCS")
    deadline = time.monotonic() + 30
    while harness.descendants(process.pid):
        assert time.monotonic() < deadline, "Ray's processes stay behind"
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.parametrize("what", ["gcs_server", "raylet"])
def test_a_cluster_that_loses_its_head_s_processes(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has joined the cluster; Ray itself would end it with exit code 1."""
    shards = str(tmp_path / "shards")
    harness.write_shards(shards, 4)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with small_cluster(1) as cluster:
        job = harness.job(
            tmp_path,
            str(tmp_path / "runs"),
            shards,
            {"RAY_ADDRESS": cluster.address},
            unit_seconds=1.0,
            num_actors=1,
        )
        process = job.start()
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/pixels/*/commits/*/*.json")):
            assert time.monotonic() < deadline, job.tail()
            assert process.poll() is None, job.tail()
            time.sleep(0.05)
        (one,) = cluster.cluster.head_node.all_processes[what]
        os.kill(one.process.pid, signal.SIGKILL)
        code = process.wait(90)
    assert code == 75, job.tail()
    (url,) = tmp_path.glob("runs/pixels/*")
    assert json.loads((url / FAILURE).read_text())["code"] == 75


@pytest.mark.long
@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_a_run_on_ray_needs_no_home(home: str | None, tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    harness.write_shards(shards, 4, rows=4)
    job = harness.job(tmp_path, str(tmp_path / "runs"), shards, num_actors=1)
    environment = {n: v for n, v in job.environment.items() if n not in ("HOME", "RAY_ADDRESS")}
    job.environment = environment | ({"HOME": home} if home else {})
    job.finish()


def test_a_job_may_set_the_variables_of_its_workers(
    tmp_path: Path, one_ray: dict[str, str]
) -> None:
    """Ray refuses a driver whose runtime_env contradicts its job's."""
    shards = str(tmp_path / "shards")
    harness.write_shards(shards, 4, rows=4)
    config = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2"}}, "metadata": {}}
    job = harness.job(
        tmp_path,
        str(tmp_path / "runs"),
        shards,
        {**one_ray, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(config)},
        num_actors=1,
    )
    job.finish()
    assert "the job's runtime_env sets OMP_NUM_THREADS=2; workers keep that" in job.tail()
