"""Ray Train's trainer: steps come to the driver while it runs, and no needless processes.

Ray Train starts a process beside each run that frees the run's resources if its controller dies.
That process asks Ray's dashboard for heartbeats. A private Ray has no dashboard, so each request
hangs, and the end of every run shorter than 40 s waits ten seconds for it. In a private Ray the
resources are freed with Ray itself, so the process is left out. Another process shards Ray Data
sets over the workers; there are none, because `BatchServer` hands out the samples.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer

from consomme.base.errors import ConsommeError
from consomme.execution.ray_private import ray_private
from consomme.execution.session import is_private
from consomme.pipelines.train.curve import STEPS, CurveFile, StepPoint
from consomme.pipelines.train.progress import StepMonitor

ReportCallback: Any = ray_private("ReportCallback")
TrainController: Any = ray_private("TrainController")

POLL_S = 1.0
"""Seconds between the driver's requests for new steps."""

CHECK_S = 5.0
"""Seconds between checks whether the same run was started again elsewhere."""

_CONTROLLERS: list[Any] = []
"""Controller actors of the trainings that this process waits for."""


def abort_all() -> None:
    """Abort the trainings that this process waits for, from another thread; checkpoints stay.

    A process that simply ends leaves the resources of its trainings claimed for as long as Ray
    lives.
    """
    for controller in list(_CONTROLLERS):
        _abort(controller)


def _abort(controller: Any) -> None:
    # The actor exits in this call, so it cannot answer.
    with contextlib.suppress(RayActorError):
        ray.get(controller.abort.remote())


class CurveCallback(ReportCallback):  # type: ignore[misc]
    """Writes the steps that rank 0 reports to `curve.json`."""

    def __init__(self, curve: CurveFile) -> None:
        """Keep the file."""
        self.curve = curve

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        """Take a report that all workers have made; `metrics` is by rank."""
        batch = metrics[0].get(STEPS)
        if batch is not None:
            self.curve.record(batch.points)


class ReportingController(TrainController):  # type: ignore[misc]
    """Ray Train's controller, which the driver can ask for the reported steps."""

    def __init__(
        self, *, curve: CurveFile, callbacks: Sequence[Any] | None = None, **settings: Any
    ) -> None:
        """Take what `TrainController` takes, and the file that steps are written to."""
        self._curve = curve
        super().__init__(callbacks=[*(callbacks or ()), CurveCallback(curve)], **settings)

    async def steps_after(self, step: int) -> list[StepPoint]:
        """Return the reported steps after this one."""
        return self._curve.points[step:]


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` that hands reported steps to the driver.

    In a private Ray, fewer processes are started; on a cluster only that for data sets is left out.
    """

    def __init__(
        self,
        *args: Any,
        curve: CurveFile,
        monitor: StepMonitor,
        check: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        """Take what `TorchTrainer` takes, and what to do with steps.

        Args:
            args: As in `TorchTrainer`.
            curve: The file that steps are written to, by the controller.
            monitor: Gets the reported steps about once a second, and at the end.
            check: Raises `SupersededError`, which aborts the training, if the same run was started
                again elsewhere.
            kwargs: As in `TorchTrainer`.
        """
        if is_private():
            # Seconds between the controller's polls of its workers; Ray Train's default is 2.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        self._curve, self._monitor, self._check = curve, monitor, check
        super().__init__(*args, **kwargs)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """Do what `TorchTrainer` of Ray 2.60 does, with `ReportingController`."""
        env_vars = ray_private("get_env_vars_to_propagate")()
        env_vars.setdefault(
            ray_private("WARN_BLOCKING_GET_VARIABLE"),
            ray_private("WARN_BLOCKING_GET_DEFAULT"),
        )
        node_id = ray.get_runtime_context().get_node_id()
        actor = ray.remote(
            num_cpus=0,
            label_selector={ray_private("NODE_ID_LABEL"): node_id},
            runtime_env={"env_vars": env_vars},
        )(ReportingController)
        controller = actor.remote(curve=self._curve, **settings)
        _CONTROLLERS.append(controller)
        try:
            running = controller.run.remote()
            checked_at = time.monotonic()
            while True:
                ended, _ = ray.wait([running], timeout=POLL_S)
                if ended:
                    ray.get(running)
                monitor = self._monitor
                monitor.update(ray.get(controller.steps_after.remote(monitor.num_steps)))
                if ended:
                    return ray.get(controller.get_result.remote())
                if time.monotonic() - checked_at > CHECK_S:
                    self._check()
                    checked_at = time.monotonic()
        except ConsommeError:
            _abort(controller)
            raise
        finally:
            _CONTROLLERS.remove(controller)

    def _create_default_callbacks(self) -> list[Any]:
        unneeded: tuple[type, ...] = (ray_private("DatasetsCallback"),)
        if is_private():
            unneeded += (ray_private("PlacementGroupCleanerCallback"),)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unneeded)]
