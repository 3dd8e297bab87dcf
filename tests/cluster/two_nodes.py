"""A Ray cluster on this machine whose nodes share no disk, as far as Python can tell.

The head stands for the driver's machine and runs no tasks. Each of the others has a HOME, temporary
files and caches of its own, and an audit hook that refuses what lies on the driver's machine or on
another node's: a path of the driver that reaches a worker ends the run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
STORE_BYTES = 100 * 2**20
FORBIDDEN = "CONSOMME_TEST_FORBIDDEN"

_HOOK = '''\
"""Refuse the files of other machines, in every process of a node."""
import os
import sys

_FORBIDDEN = tuple(os.environ.get("CONSOMME_TEST_FORBIDDEN", "").split(os.pathsep))


def _hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename") and arguments:
        path = arguments[0]
        if isinstance(path, str) and path.startswith(_FORBIDDEN):
            raise PermissionError(f"a path of another machine: {path}")


if _FORBIDDEN[0]:
    sys.addaudithook(_hook)
'''


@dataclass(frozen=True)
class TwoNodes:
    """The cluster, and the environment of its driver's machine."""

    address: str
    driver: Path
    """Folder of the driver's machine."""

    nodes: tuple[Path, ...]
    """Folders of the others."""

    env: dict[str, str]

    def run(self, verb: str, recipe: Mapping[str, Any], **env: str) -> str:
        """Run a verb on the driver's machine; returns what it printed.

        Raises:
            AssertionError: It failed; with what it said.
        """
        file = self.driver / f"{recipe['name']}.yaml"
        file.write_text(yaml.safe_dump(dict(recipe)))
        done = subprocess.run(
            [sys.executable, "-m", "consomme.cli", verb, file.name],
            cwd=self.driver,
            env={**os.environ, **self.env, **env, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{verb} {recipe}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def environment_of(machine: Path, others: list[Path], hook: Path) -> dict[str, str]:
    """Environment of the processes of one machine."""
    for name in ("home", "tmp"):
        (machine / name).mkdir(parents=True, exist_ok=True)
    paths = [str(hook), str(ROOT / "platform"), str(ROOT)]
    return {
        "HOME": str(machine / "home"),
        "TMPDIR": str(machine / "tmp"),
        "HF_HOME": str(machine / "hf"),
        "CONSOMME_CACHE_DIR": str(machine / "cache"),
        "XDG_CACHE_HOME": str(machine / "xdg"),
        FORBIDDEN: os.pathsep.join(map(str, others)),
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_AUTH_MODE": "disabled",
    }


@contextlib.contextmanager
def two_nodes(folder: Path, env: Mapping[str, str], num_cpus: int = 2) -> Iterator[TwoNodes]:
    """Start a head and two nodes.

    Args:
        folder: Of all machines.
        env: What all of them have: credentials and endpoints.
        num_cpus: Of each node.
    """
    from ray.cluster_utils import Cluster

    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(_HOOK)
    names = ["driver", "node1", "node2"]
    machines = {name: folder / name for name in names}
    own = {
        name: {
            **env,
            **environment_of(
                place, [one for other, one in machines.items() if other != name], hook
            ),
        }
        for name, place in machines.items()
    }
    shared = {"object_store_memory": STORE_BYTES}
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "env_vars": own["driver"],
            **shared,
        },
    )
    nodes = [
        cluster.add_node(num_cpus=num_cpus, env_vars=own[name], wait=False, **shared)
        for name in names[1:]
    ]
    try:
        cluster.wait_for_nodes()
        driver = {name: value for name, value in own["driver"].items() if name != FORBIDDEN}
        yield TwoNodes(
            str(cluster.address),
            machines["driver"],
            tuple(machines[name] for name in names[1:]),
            driver,
        )
    finally:
        for node in [*nodes, cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
