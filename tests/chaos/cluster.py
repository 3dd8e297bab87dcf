"""A Ray cluster of several nodes on this machine, each of which can be lost like a spot node."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 4,
}
STORE_BYTES = 100 * 2**20


class SmallCluster:
    """A head that runs no tasks, and worker nodes with a CPU each."""

    def __init__(self, num_workers: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "_system_config": HEALTH,
            },
        )
        self.workers = []
        for _ in range(num_workers):
            self.add_worker()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_worker(self) -> None:
        self.workers.append(
            self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False)
        )

    def lose_worker(self, index: int) -> None:
        """SIGKILL all of a node, and let a new one join."""
        node = self.workers.pop(index)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_worker()

    def preempt_worker(self, index: int, notice_s: int, *, is_replaced: bool = True) -> None:
        """Say that a node will be taken away, and do it then."""
        node = self.workers.pop(index)
        ray = Path(sys.executable).with_name("ray")
        deadline = f"--deadline-remaining-seconds={notice_s}"
        drain = [str(ray), "drain-node", "--address", self.address, "--node-id", node.node_id]
        drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", deadline]
        subprocess.run(drain, check=True, capture_output=True, timeout=60)
        if is_replaced:
            self.add_worker()
        time.sleep(notice_s)
        self.cluster.remove_node(node, allow_graceful=False)

    def lose_head(self) -> None:
        """SIGKILL the head and, as the nodes cannot live without it, everything."""
        self.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.end()

    def end(self) -> None:
        for node in [*self.workers, self.cluster.head_node]:
            with contextlib.suppress(Exception):
                node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.workers = []


@contextlib.contextmanager
def small_cluster(num_workers: int = 2) -> Iterator[SmallCluster]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = SmallCluster(num_workers)
    try:
        yield cluster
    finally:
        cluster.end()
