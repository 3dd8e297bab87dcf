"""Ray Train's trainer without what only costs time when Ray belongs to one command.

Ray Train 2.60 starts a process beside each run that frees the run's resources if its controller
dies. It asks Ray's dashboard for signs of life; a private Ray has none, each question hangs, and
the end of every run shorter than 40 s waits ten seconds for it. There the resources go with Ray.
Another process hands out Ray Data sets, which we give it none of: `BatchServer` deals our samples.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController

from consomme.execution.session import is_private
from consomme.storage.stores.open import absolute_url

_CONTROLLERS: list[Any] = []
"""Actors that lead the trainings this process waits for."""


def abort_all() -> None:
    """End the trainings that this process waits for, from another thread; checkpoints stay.

    A process that just ends would leave what they claimed behind, for as long as Ray lives.
    """
    for controller in list(_CONTROLLERS):
        # It ends itself, so it cannot answer.
        with contextlib.suppress(RayActorError):
            ray.get(controller.abort.remote())


def storage_of(url: str) -> dict[str, Any]:
    """Say where Ray Train keeps checkpoints, as keywords of its `RunConfig`.

    Args:
        url: The run folder. Credentials for S3 come from where pyarrow looks for them.
    """
    url = absolute_url(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url.startswith("s3://") or not endpoint:
        return {"storage_path": url}
    from pyarrow.fs import S3FileSystem

    # A server of one's own: pyarrow has to be told.
    return {
        "storage_path": url.removeprefix("s3://"),
        "storage_filesystem": S3FileSystem(
            endpoint_override=endpoint, region=os.environ.get("AWS_REGION", "us-east-1")
        ),
    }


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer`; on a cluster only the data sets are left out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `TorchTrainer` takes."""
        if is_private():
            # How often the controller looks whether the workers are done; 2 s by itself.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        super().__init__(*args, **kwargs)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """Do what `TorchTrainer` of Ray 2.60 does, and keep the controller for `abort_all`."""
        env_vars = get_env_vars_to_propagate()
        env_vars.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
            DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        )
        here = ray.get_runtime_context().get_node_id()
        actor = ray.remote(
            num_cpus=0,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: here},
            runtime_env={"env_vars": env_vars},
        )(TrainController)
        controller = actor.remote(**settings)
        _CONTROLLERS.append(controller)
        try:
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())
        finally:
            _CONTROLLERS.remove(controller)

    def _create_default_callbacks(self) -> list[Any]:
        useless: tuple[type, ...] = (DatasetsCallback,)
        if is_private():
            useless += (PlacementGroupCleanerCallback,)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, useless)]
