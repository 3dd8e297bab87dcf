"""Run one trial of a sweep in a Ray actor: a training, then an evaluation, as their verbs do them.

The actor runs on the node of the sweep and in its working directory, so relative paths resolve as
they do in the sweep. It reserves no CPU and no GPU: the runs that it starts reserve what they need,
so the actors of waiting trials take nothing from the training workers of others.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from consomme.base.errors import ClusterError, ConsommeError, SupersededError
from consomme.base.recipe import check_recipe
from consomme.execution.errors import own_errors
from consomme.execution.ray_private import TRAIN_SNAPSHOT
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.sweep.evaluations import evaluations_of
from consomme.pipelines.sweep.trial import LOSS_KEY, STEP_KEY, checkpoint_losses, is_final
from consomme.pipelines.train import run as train
from consomme.pipelines.train.outputs import CURVE
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.pins import pins_kept
from consomme.storage.stores.store import Store

POLL_INTERVAL_S = 1.0
"""Seconds between checks for a new checkpoint, for trials that may be stopped early."""

CHECK_INTERVAL_S = 5.0
"""As `POLL_INTERVAL_S`, for other trials: what is checked is whether the sweep still runs here."""

ABORT_TIMEOUT_S = 60.0
"""Seconds that a training may take to end after it was aborted."""


class TrialThread:
    """Trains and evaluates one trial in a thread of this process."""

    def __init__(
        self,
        recipe: TrainRecipe,
        benchmarks: Any,
        guards: Any,
        *,
        report_checkpoints: bool,
        check: Callable[[], None],
        pins: Mapping[str, str],
    ) -> None:
        """Start the thread.

        Args:
            recipe: The trial's train recipe.
            benchmarks: Registry nodes of the benchmarks that the model is evaluated on.
            guards: What it may not lose.
            report_checkpoints: Whether to report the loss at every checkpoint, for a stopper.
            check: Raises `SupersededError` if the sweep was started again elsewhere.
            pins: Commits of what it reads from the hub.
        """
        self.recipe, self.benchmarks, self._check = recipe, benchmarks, check
        self.guards = guards
        self._pins = pins
        with pins_kept(pins):
            self._store = _store_of_unfinished(recipe) if report_checkpoints else None
        self._num_reported, self._is_trained = 0, False
        self._last_report: Future[dict[str, Any]] = Future()
        # A daemon: after `abort`, the process waits for the training to end, but no longer.
        threading.Thread(target=self._run, daemon=True).start()

    def next_report(self) -> dict[str, Any]:
        """Wait for the next checkpoint, or for the end of the trial, and report it.

        Checkpoints of an earlier attempt are reported again, because a stopper needs them.

        Returns:
            Step and loss. The last report also has `train`, the folder of the run, and `evaluate`,
            those of its evaluations as JSON; or `failure`, the reason why there are none.

        Raises:
            ClusterError: The infrastructure failed, not the trial.
            SupersededError: The sweep, or the trial's training, was started again elsewhere.
        """
        interval_s = CHECK_INTERVAL_S if self._store is None else POLL_INTERVAL_S
        while not self._last_report.done():
            wait([self._last_report], timeout=interval_s)
            self._check()
            report = self._checkpoint_report()
            if report is not None:
                return report
        return self._last_report.result()

    def _checkpoint_report(self) -> dict[str, Any] | None:
        """Report the next checkpoint, if it is in storage; the last step is reported at the end."""
        if self._store is None or self._is_trained or not self._store.exists(CURVE):
            return None
        every = self.recipe.checkpoint_every
        losses = checkpoint_losses(json.loads(self._store.read(CURVE)), every)
        step = (self._num_reported + 1) * every
        if len(losses) <= self._num_reported or step >= self.recipe.num_steps:
            return None
        if last_stored_step(self._store) < step:
            # Still being uploaded: a trial that is stopped now could not resume from it.
            return None
        self._num_reported += 1
        return {STEP_KEY: step, LOSS_KEY: losses[self._num_reported - 1]}

    def _run(self) -> None:
        try:
            self._last_report.set_result(self._train_and_evaluate())
        except BaseException as error:  # noqa: BLE001 - raised again by `next_report`
            self._last_report.set_exception(error)

    def _train_and_evaluate(self) -> dict[str, Any]:
        recipe = self.recipe
        try:
            with own_errors(), pins_kept(self._pins):
                trained = train.run(recipe)
                # From here on checkpoints are not reported: stopping would save nothing.
                self._is_trained = True
                evaluated = [
                    evaluate.run(evaluation).url
                    for evaluation in evaluations_of(
                        recipe, trained.url, self.benchmarks, self.guards
                    )
                ]
        except (ClusterError, SupersededError):
            raise
        except ConsommeError as error:
            return {STEP_KEY: recipe.num_steps, LOSS_KEY: float("inf"), "failure": str(error)}
        return {
            STEP_KEY: recipe.num_steps,
            LOSS_KEY: trained.metrics["train/last_loss_nats"],
            "train": trained.url,
            "evaluate": json.dumps(evaluated),
        }

    def abort(self) -> None:
        """Abort the trial if it is not done; its checkpoints stay, its resources become free."""
        if not self._last_report.done():
            from consomme.pipelines.train.trainer import abort_all

            abort_all()
            wait([self._last_report], timeout=ABORT_TIMEOUT_S)


class SweepTrialRunner:
    """Runs the trials that Ray Tune gives to one actor."""

    def __init__(
        self,
        cwd: str,
        address: str,
        benchmarks: Any,
        guards: Any,
        *,
        report_checkpoints: bool,
        sweep_url: str,
        attempt_no: int,
        pins: Mapping[str, str],
    ) -> None:
        """Prepare for any trial.

        Args:
            cwd: Folder that relative paths start from.
            address: Ray cluster; empty if Ray is private to the sweep.
            benchmarks: Registry nodes of the benchmarks that models are evaluated on.
            guards: What they may not lose.
            report_checkpoints: Whether to report the loss at every checkpoint.
            sweep_url: Absolute URL of the sweep's run folder.
            attempt_no: Attempt of the sweep; once a later one has begun, trials are aborted.
            pins: Commits of what trials read from the hub.
        """
        self._sweep, self._attempt_no = RunFolder.at(sweep_url), attempt_no
        self._pins = pins
        self._cwd, self._benchmarks, self._guards = cwd, benchmarks, guards
        self._report_checkpoints = report_checkpoints
        self._train: dict[str, Any] = {}
        self._thread: TrialThread | None = None
        if address:
            os.environ["RAY_ADDRESS"] = address

    def start(self, config: dict[str, Any]) -> None:
        """Take the trial's train recipe, as plain values, from `config["train"]`."""
        self._train = config["train"]

    def step(self) -> dict[str, Any]:
        """Return the next report of the trial; start the trial first, if that was not done."""
        os.chdir(self._cwd)
        if self._thread is None:
            self._thread = TrialThread(
                check_recipe(TrainRecipe, self._train),
                self._benchmarks,
                self._guards,
                report_checkpoints=self._report_checkpoints,
                check=lambda: self._sweep.check_current(self._attempt_no),
                pins=self._pins,
            )
        try:
            report = self._thread.next_report()
        except SupersededError:
            # At once, so that the attempt that took over finds the resources free.
            self.stop()
            raise
        return report | {"done": is_final(report)}

    def stop(self) -> None:
        """Abort the trial if it is not done."""
        if self._thread is not None:
            self._thread.abort()
        self._thread = None


def _store_of_unfinished(recipe: TrainRecipe) -> Store | None:
    """Return the store of a training's run folder; None if the training is done."""
    run = train.open_run(recipe)
    return None if run.is_done else run.folder.store


def last_stored_step(store: Store) -> int:
    """Return the step of a training's last checkpoint in storage; 0 if there is none."""
    try:
        latest = json.loads(store.read(TRAIN_SNAPSHOT))["latest_checkpoint_result"]
    except (FileNotFoundError, json.JSONDecodeError):
        # Not written yet, or only partly.
        return 0
    return int(latest["metrics"]["step"]) if latest else 0
