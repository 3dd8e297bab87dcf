"""Start Ray for one command, or join the cluster that the job runs on.

A local Ray is private to the command (`address="local"`): it never meets another Ray on the machine
and ends with the command. Inside a job, the cluster's address is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from consomme.base.errors import ClusterError
from consomme.base.process import WORKER_HOOK, environment
from consomme.execution.errors import own_errors
from consomme.execution.ray_private import ray_private

logger = logging.getLogger(__name__)

WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

PRIVATE_ENV = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""No node of a private Ray is ever preempted."""

_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Run the block with Ray; nested blocks share one Ray."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Otherwise a driver waits for the first workers before it may connect, and for ever if one of
    # them dies while starting.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ctrl-C must reach us: Tune would handle it as a request to stop early.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # A private Ray deletes its log files at its end; on the terminal its lines would mix with
        # ours.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Keep idle processes for the next stage, with everything they have imported.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")
    try:
        if address:
            _init(runtime_env={"env_vars": WORKER_ENV})
        else:
            with environment(_private_env()):
                _init(address="local", include_dashboard=False)
    # Ray raises plain Exception, ConnectionError, RuntimeError and more when it cannot start.
    except Exception as error:
        where = (
            f"the Ray cluster at {address} cannot be reached" if address else "Ray did not start"
        )
        raise ClusterError(f"{where} ({error}); run the same command again to go on") from error
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with own_errors():
            yield
    finally:
        if not _SHARED.get():
            ray.shutdown()


def _init(**options: Any) -> None:
    import ray

    ray.init(**options, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)


def _private_env() -> dict[str, str]:
    """Environment of the workers of a private Ray.

    They inherit it. With a `runtime_env` instead, each worker's Python would start twice, which
    doubles its start time; Ray 2.60 takes the hook of a `runtime_env` from a variable as well.
    """
    return WORKER_ENV | PRIVATE_ENV | {ray_private("SETUP_HOOK_VARIABLE"): WORKER_HOOK}


def is_private() -> bool:
    """Whether Ray is private to this command, and not a cluster."""
    return not os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def shared_ray() -> Iterator[None]:
    """Share one Ray among all sessions in the block; the first one starts it."""
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)
        import sys

        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def num_cpus() -> int:
    """CPUs of the running Ray cluster, at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
