"""The private names of Ray that consomme uses, all in one place.

They may move with any release, so pyproject.toml pins Ray, and one test
(tests/execution/test_ray_private.py) looks up each of them: it fails when an upgrade moves one.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

NAMES = {
    # Label of a node by which a task is sent to it, or kept away from it.
    "NODE_ID_LABEL": "ray._raylet:RAY_NODE_ID_KEY",
    # Environment variable with the hook that each worker process runs first.
    "SETUP_HOOK_VARIABLE": "ray._private.ray_constants:WORKER_PROCESS_SETUP_HOOK_ENV_VAR",
    # Environment variable of a job's driver with what the job was submitted with.
    "JOB_CONFIG_VARIABLE": ("ray._private.runtime_env.constants:RAY_JOB_CONFIG_JSON_ENV_VAR"),
    # Holds the node that this process started or joined, `_global_node`.
    "worker_module": "ray._private.worker:",
    # What Ray will find on a machine.
    "get_num_cpus": "ray._private.utils:get_num_cpus",
    "NvidiaGPUAcceleratorManager": (
        "ray._private.accelerators.nvidia_gpu:NvidiaGPUAcceleratorManager"
    ),
    # The cluster's state, with the limits of its autoscaler.
    "state": "ray._private.state:state",
    # Settings and token of this process, both of which Ray caches.
    "Config": "ray._raylet:Config",
    "AuthenticationTokenLoader": "ray._raylet:AuthenticationTokenLoader",
    # Whether the address of the node is one that other machines reach.
    "ENABLE_RAY_CLUSTER": "ray._private.ray_constants:ENABLE_RAY_CLUSTER",
    # Ray Train's controller and what its trainer gives it.
    "TrainController": "ray.train.v2._internal.execution.controller:TrainController",
    "ReportCallback": "ray.train.v2._internal.execution.callback:ReportCallback",
    "DatasetsCallback": "ray.train.v2._internal.callbacks.datasets:DatasetsCallback",
    "PlacementGroupCleanerCallback": (
        "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback"
    ),
    "get_env_vars_to_propagate": "ray.train.v2._internal.constants:get_env_vars_to_propagate",
    "WARN_BLOCKING_GET_VARIABLE": (
        "ray._common.constants:RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR"
    ),
    "WARN_BLOCKING_GET_DEFAULT": (
        "ray.train.v2._internal.constants:DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE"
    ),
}
"""Name here -> `module:attribute` in Ray; without an attribute, the module itself."""

OVERRIDDEN = {
    "ray.train.torch:TorchTrainer": ("_initialize_and_run_controller", "_create_default_callbacks"),
}
"""Class -> its private methods that a class of ours overrides."""

LOGGERS = ("ray.data", "ray.data._internal")
"""Loggers of Ray Data's remarks."""

TRAIN_SNAPSHOT = "checkpoints/checkpoint_manager_snapshot.json"
"""Where Ray Train writes which checkpoints of a run are in storage, below the run folder."""


def ray_private(name: str) -> Any:
    """Import one of `NAMES`; imports no more of Ray than that needs."""
    module, _, attribute = NAMES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def imported_module(name: str) -> ModuleType | None:
    """Return the module of one of `NAMES`, if it was imported before."""
    return sys.modules.get(NAMES[name].partition(":")[0])


def current_node() -> Any:
    """Return the `Node` that this process started or joined; None without Ray."""
    return ray_private("worker_module")._global_node
