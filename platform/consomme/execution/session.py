"""Start Ray for one command, or join the cluster that the job runs on.

A local Ray is private to the command (`address="local"`): it never meets another Ray on the
machine, has a folder and a token of its own (`consomme.execution.private_ray`), and ends with the
command. Inside a job, the cluster's address is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from consomme.base.errors import ClusterError, ConsommeError
from consomme.base.process import WORKER_HOOK, environment
from consomme.base.secrets import is_secret_name
from consomme.execution.capacity import check_cluster
from consomme.execution.errors import own_errors
from consomme.execution.private_ray import loopback, private_place
from consomme.execution.ray_private import ray_private
from consomme.execution.ray_watch import end_private_ray, watched, watched_start
from consomme.storage.stores.hub_client import OFFLINE_VARIABLE, is_offline
from consomme.storage.stores.retries import KNOWN_VARIABLE, PATIENCE_VARIABLE, patience_s

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

_PLACES: list[contextlib.ExitStack] = []
"""Folder and token of the Ray that is shared; it goes when that ends."""


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

    address = os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        with watched(is_private=not address), own_errors():
            check_cluster()
            yield
        return
    if not address:
        # A private Ray deletes its log files at its end; on the terminal its lines would mix with
        # ours.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Keep idle processes for the next stage, with everything they have imported.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as place:
        try:
            if address:
                _init(runtime_env={"env_vars": _job_env()})
            else:
                folder, variables = place.enter_context(private_place())
                with loopback(), environment(_private_env() | variables), watched_start():
                    _init(address="local", include_dashboard=False, _temp_dir=str(folder))
        except ConsommeError:
            raise
        # Ray raises plain Exception, ConnectionError, RuntimeError and more when it cannot start.
        except Exception as error:
            where = (
                f"the Ray cluster at {address} cannot be reached"
                if address
                else "Ray did not start"
            )
            raise ClusterError(f"{where} ({error}); run the same command again to go on") from error
        if threading.current_thread() is threading.main_thread() and handler is not None:
            # Ray's own handler ends the process with exit code 1, whatever it is doing.
            signal.signal(signal.SIGTERM, handler)
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.WARNING)
        watch = None
        try:
            with watched(is_private=not address) as watch, own_errors():
                check_cluster()
                yield
        finally:
            if watch is not None and watch.reason:
                # Shutting down would wait for what is gone, until Ray ends this process.
                end_private_ray()
            elif _SHARED.get():
                _PLACES.append(place.pop_all())
            else:
                ray.shutdown()


def _job_env() -> dict[str, str]:
    """Environment of the workers of a job; what the job itself sets there stays.

    Ray refuses to start a driver that sets a variable which its job sets already.
    """
    ours = WORKER_ENV | _storage_env()
    text = os.environ.get(ray_private("JOB_CONFIG_VARIABLE"), "")
    env = (json.loads(text).get("runtime_env") or {}).get("env_vars") or {} if text else {}
    leaked = [name for name in env if is_secret_name(name, is_variable=True)]
    if leaked:
        logger.warning(
            "the job's runtime_env sets %s: `ray job list` and Ray's logs show the values"
            " to whoever uses the cluster; use a role, a profile or a mounted file instead",
            ", ".join(leaked),
        )
    kept = [name for name in ours if name in env and str(env[name]) != ours[name]]
    if kept:
        logger.warning(
            "the job's runtime_env sets %s; workers keep that, where consomme would set %s",
            ", ".join(f"{name}={env[name]}" for name in kept),
            ", ".join(f"{name}={ours[name]}" for name in kept),
        )
    return {name: value for name, value in ours.items() if name not in env}


def _storage_env() -> dict[str, str]:
    """Give workers the patience of the driver, which has reached the storage by now.

    They also learn whether the hub may be asked; see `OFFLINE_VARIABLE`.
    """
    return {
        PATIENCE_VARIABLE: f"{patience_s():g}",
        KNOWN_VARIABLE: "1",
        OFFLINE_VARIABLE: "1" if is_offline() else "0",
    }


def _init(**options: Any) -> None:
    import ray

    ray.init(**options, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)


def _private_env() -> dict[str, str]:
    """Environment of the workers of a private Ray.

    They inherit it. With a `runtime_env` instead, each worker's Python would start twice, which
    doubles its start time; Ray 2.60 takes the hook of a `runtime_env` from a variable as well.
    """
    return (
        WORKER_ENV
        | PRIVATE_ENV
        | _storage_env()
        | {ray_private("SETUP_HOOK_VARIABLE"): WORKER_HOOK}
    )


def is_private() -> bool:
    """Whether Ray is private to this command, and not a cluster."""
    return not os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def shared_ray() -> Iterator[None]:
    """Share one Ray among all sessions in the block; the first one starts it.

    A Ray that runs already is whose block it is, and goes on after this one.
    """
    if _SHARED.get() or _is_running():
        yield
        return
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)
        if _is_running():
            sys.modules["ray"].shutdown()
        while _PLACES:
            _PLACES.pop().close()


def _is_running() -> bool:
    """Whether this process uses a Ray; asking imports none."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def num_cpus() -> int:
    """CPUs of the running Ray cluster, at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
