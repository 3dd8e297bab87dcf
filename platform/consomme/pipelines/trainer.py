"""Ray Train's trainer without what only costs time when Ray belongs to one command.

Ray Train 2.60 starts a process beside each run that frees the run's resources if its controller
dies. It asks Ray's dashboard for signs of life; a private Ray has none, each question hangs, and
the end of every run shorter than 40 s waits ten seconds for it. There the resources go with Ray.
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from consomme.pipelines.session import is_private
from consomme.storage.files import absolute_url


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
    """A `TorchTrainer`; on a cluster nothing is different."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what `TorchTrainer` takes."""
        if is_private():
            # How often the controller looks whether the workers are done; 2 s by itself.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        super().__init__(*args, **kwargs)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if not is_private():
            return callbacks
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]
