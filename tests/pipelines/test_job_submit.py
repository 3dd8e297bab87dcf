"""Jobs run through `ray job submit` as they run on a laptop, on a Ray with token authentication."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from consomme.models.debug import make_debug_vlm
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.storage.ledger.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
TOKEN = "0123456789abcdef" * 4


def free_ports(number: int) -> list[int]:
    """Find ports nobody listens on; all are held open until the last one is found."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(number):
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            found.append(held.getsockname()[1])
        return found


def processes_of(folder: str) -> list[psutil.Process]:
    """List our processes that name a folder only they know, and all that these have started.

    Ray's agents and workers change their command lines, and an agent that is left alone keeps a
    core busy for a minute.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if folder in " ".join(process.cmdline()) and process.pid != os.getpid():
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return list(found.values())


def end(processes: list[psutil.Process]) -> None:
    """End them, by force those that will not."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=3)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


@dataclass(frozen=True)
class Head:
    """A running Ray head."""

    port: int
    """Where drivers join."""

    env: dict[str, str]
    """What a client needs in its environment."""

    folder: Path
    """Ray's own files: sockets and logs."""

    def leaves(self) -> str:
        """Return all that Ray keeps of jobs: its logs, and what `ray job list` shows."""
        listed = subprocess.run(
            [str(RAY), "job", "list"],
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        logs = [path for path in self.folder.rglob("logs/**/*") if path.is_file()]
        assert len(logs) > 10
        texts = [path.read_text(errors="replace") for path in logs]
        return "\n".join([listed.stdout, listed.stderr, *texts])

    def submit(
        self,
        *entrypoint: str,
        fails: bool = False,
        runtime_env: str = "cluster/runtime-env.yaml",
    ) -> str:
        """Submit a job as a user would, wait for it, and return what it wrote."""
        done = subprocess.run(
            [
                *(str(RAY), "job", "submit", "--runtime-env", runtime_env, "--"),
                *(sys.executable, *entrypoint),
            ],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        shown = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, shown[-4000:]
        assert ("failed" if fails else "succeeded") in shown.rpartition("Job 'raysubmit_")[2]
        return shown


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a Ray head of our own, with ports of its own, and end only that."""
    # Unix sockets have short names: not the test's own folder.
    folder = tempfile.mkdtemp(prefix="cj")
    gcs, dashboard, client, agent = free_ports(4)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = plain | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_ADDRESS": "",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONPATH": "",
        # As a Secret is given to the pods of a cluster.
        "HF_TOKEN": "canary-of-the-pods",
        "PLANTED": "canary-of-a-recipe",
    }
    command = [str(RAY), "start", "--head", "--disable-usage-stats", f"--temp-dir={folder}"]
    command += [
        "--node-ip-address=127.0.0.1",
        f"--port={gcs}",
        f"--ray-client-server-port={client}",
    ]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--object-store-memory={128 * 2**20}"]
    try:
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
        yield Head(port=gcs, env=env, folder=Path(folder))
    finally:
        end(processes_of(folder))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Any VLM will do: the tiny one that has learned nothing."""
    return str(make_debug_vlm(tmp_path_factory.mktemp("model") / "vlm", num_layers=2))


def run_folder(shown: str) -> str:
    """Return the run folder that a job printed."""
    return re.findall(r"run folder +(\S+)", shown)[-1]


def test_score(head: Head, model: str, tmp_path: Path) -> None:
    source = {"name": "emoji", "every": 28}
    prepared = prepare.run(
        PrepareRecipe(
            name="noisy-emoji", root=str(tmp_path), source=source, bad_images=2, rows_per_shard=25
        )
    )
    num = prepared.counts["samples"]
    assert num >= 60

    # Brackets, stars and blanks reach the recipe as they were typed.
    command = ("jobs/score.py", "recipes/score/points.yaml", f"root={tmp_path}", f"model={model}")
    command += (f"inputs=[{tmp_path}/prepare/noisy-emoji-*/data/*.tar]",)
    command += ("prompt=what is this, ${oc.env:PLANTED}?",)
    command += ("max_reject_fraction=0.1", "unit_rows=16", "num_actors=1")
    shown = head.submit(*command)
    scored = RunFolder.at(run_folder(shown))
    manifest = scored.manifest()
    assert manifest.counts["samples"] == num - 2
    assert manifest.counts["rejected"] == 2
    assert manifest.recipe["prompt"] == "what is this, ${oc.env:PLANTED}?"
    assert [parent.url for parent in manifest.parents] == [prepared.url]
    assert len(scored.commits()) > 3
    assert "Traceback" not in shown

    again = head.submit(*command)
    assert run_folder(again) == scored.url
    assert json.dumps(RunFolder.at(scored.url).manifest().started) == json.dumps(manifest.started)
    assert "canary" not in shown + again + head.leaves()
    for path in Path(scored.url).rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes(), path


def test_a_recipe_with_typos_fails_with_one_message(head: Head, tmp_path: Path) -> None:
    recipe = tmp_path / "typos.yaml"
    recipe.write_text("name: x\ninputs: [a]\nmodle: b\nunit_row: 3\n")
    shown = head.submit("jobs/score.py", str(recipe), fails=True)
    assert "modle: unknown key; did you mean 'model'?" in shown
    assert "unit_row: unknown key; did you mean 'unit_rows'?" in shown
    assert "exit code 2" in shown
    assert "Traceback" not in shown


def test_the_code_that_was_sent_runs_on_the_cluster_it_was_sent_to(
    head: Head, tmp_path: Path
) -> None:
    """Driver and workers import the uploaded copy, and no job starts a Ray of its own."""
    script = """
        import consomme, ray
        from consomme.execution.session import ray_session
        with ray_session():
            there = ray.remote(lambda: __import__("consomme").__file__).remote()
            print("joined", ray.get_runtime_context().gcs_address)
            print("driver", consomme.__file__)
            print("worker", ray.get(there))
    """
    path = tmp_path / "where.py"
    path.write_text(textwrap.dedent(script))
    shown = head.submit(str(path))
    assert re.search(rf"joined \S+:{head.port}\n", shown)
    for who in ("driver", "worker"):
        assert re.search(rf"{who} \S+/working_dir_files/\S+/platform/consomme/__init__.py", shown)


def test_secrets_in_a_runtime_env_are_warned_of(head: Head, tmp_path: Path) -> None:
    path = tmp_path / "joins.py"
    path.write_text(
        "from consomme.base.telemetry import configure_logging\n"
        "from consomme.execution.session import ray_session\n"
        "configure_logging()\n"
        "with ray_session():\n"
        "    pass\n"
    )
    env = yaml.safe_load((ROOT / "cluster/runtime-env.yaml").read_text())
    env["env_vars"] |= {"SOME_API_KEY": "0123456", "OTHER": "1"}
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(env))
    shown = head.submit(str(path), runtime_env=str(tmp_path / "env.yaml"))
    assert "runtime_env sets SOME_API_KEY: `ray job list` and Ray's logs show" in shown


def test_without_the_token_nothing_is_taken(head: Head) -> None:
    env = head.env | {"RAY_AUTH_TOKEN": "wrong"}
    done = subprocess.run(
        [str(RAY), "job", "list"], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "nvalid authentication token" in done.stdout + done.stderr
