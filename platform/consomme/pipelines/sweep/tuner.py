"""Run the trials of a sweep with Ray Tune; Ray starts only if a trial is not done yet."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from consomme.base.errors import SupersededError
from consomme.base.recipe import check_recipe
from consomme.base.telemetry import Progress
from consomme.execution import tune
from consomme.execution.session import is_private, num_cpus, ray_session
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.study import SweepStudy
from consomme.pipelines.sweep.trial import LOSS_KEY, STEP_KEY, Trial
from consomme.pipelines.sweep.worker import SweepTrialRunner
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.stores.open import absolute_url
from consomme.sweep.stoppers import Asha

logger = logging.getLogger(__name__)


def run_sweep(
    plan: SweepPlan, folder: RunFolder, attempt_no: int, pins: Mapping[str, str]
) -> list[Trial]:
    """Run every trial that is not done, and return all trials.

    Args:
        plan: The checked sweep.
        folder: Its run folder.
        attempt_no: Its attempt; another one that begins stops this one.
        pins: Commits of what its trials read from the hub.

    Raises:
        SupersededError: The sweep was started again elsewhere; its trials were aborted.
        ClusterError: The infrastructure failed; finished trials are kept.
    """
    source = SweepTrials(SweepStudy(plan, folder.store), folder, attempt_no)
    first = source.ask()
    if first is not None:
        with ray_session():
            _tune(source, first, pins)
    folder.check_current(attempt_no)
    return source.study.trials


class SweepTrials:
    """Gives the trials of a study to Ray Tune, and their reports to the study."""

    def __init__(self, study: SweepStudy, folder: RunFolder, attempt_no: int) -> None:
        """Wrap a study; set `progress` to show how many trials have ended.

        Args:
            study: The trials.
            folder: The sweep's run folder.
            attempt_no: Once a later attempt has begun, no trial is asked for or stored.
        """
        self.study, self.folder, self.attempt_no = study, folder, attempt_no
        self.progress: Progress | None = None
        self._has_lost = False

    @property
    def is_finished(self) -> bool:
        """Whether no trial is left, or none for this attempt."""
        # What waits for a trial whose process was lost goes on when the sweep is resumed.
        return self._has_lost or not self.study.is_waiting or self._is_overtaken()

    def ask(self) -> dict[str, Any] | None:
        """Return number and train recipe of the next trial; None if there is none left."""
        trial = None if self._is_overtaken() else self.study.ask()
        if trial is None:
            return None
        logger.info("sweep: trial %s begins", trial.name)
        return {"number": trial.number, "train": self.study.plan.train_values(trial.keys)}

    def tell(self, config: dict[str, Any], result: Mapping[str, Any] | None) -> None:
        """Store what the last report of a trial says."""
        if result is None or self._is_overtaken():
            # The infrastructure failed, not the trial: it runs again when the sweep is resumed.
            # Or a later attempt runs it.
            self._has_lost = True
            return
        self.study.tell(self._ended(self.study.trials[config["number"]], result))
        if self.progress is not None:
            self.progress.advance(max(0, self.study.num_ended - self.progress.done))

    def _is_overtaken(self) -> bool:
        try:
            self.folder.check_current(self.attempt_no)
        except SupersededError:
            return True
        return False

    def should_continue(self, config: dict[str, Any], report: Mapping[str, Any]) -> bool:
        """Whether a trial continues after a checkpoint."""
        return self.study.should_continue(config["number"], report[STEP_KEY], report[LOSS_KEY])

    def _ended(self, trial: Trial, report: Mapping[str, Any]) -> Trial:
        if report.get("failure"):
            ended = replace(trial, state="failed", reason=report["failure"])
        elif report.get("train"):
            evaluated = [load_manifest(url) for url in json.loads(report["evaluate"])]
            ended = self.study.with_results(trial, load_manifest(report["train"]), evaluated)
        else:
            num_steps = self.study.plan.train_recipe(trial.keys).num_steps
            reason = f"after {report[STEP_KEY]} of {num_steps} steps, loss {report[LOSS_KEY]:.4g}"
            ended = replace(trial, state="stopped", reason=reason)
        outcome = ended.reason or f"{self.study.plan.metric} {ended.value:.4g}"
        logger.info("sweep: trial %s is %s: %s", ended.name, ended.state, outcome)
        return ended


def _tune(source: SweepTrials, first: dict[str, Any], pins: Mapping[str, str]) -> None:
    import ray

    study, plan = source.study, source.study.plan
    has_stopper = isinstance(plan.stopper, Asha)
    with Progress(plan.num_trials, "sweep", "trials") as progress:
        progress.advance(study.num_ended)
        source.progress = progress
        errors = tune.run_trials(
            source,
            first,
            SweepTrialRunner,
            {
                "cwd": os.getcwd(),
                "address": "" if is_private() else ray.get_runtime_context().gcs_address,
                "benchmarks": list(plan.recipe.benchmarks),
                "guards": list(plan.recipe.guards),
                "report_checkpoints": has_stopper,
                "sweep_url": absolute_url(source.folder.url),
                "attempt_no": source.attempt_no,
                "pins": dict(pins),
            },
            resources=_this_node(),
            max_concurrent=plan.recipe.max_concurrent or _max_concurrent(first),
            should_continue=source.should_continue if has_stopper else None,
        )
        source.folder.check_current(source.attempt_no)
        for error in errors:
            raise error


def _this_node() -> dict[str, float]:
    """Return a tiny amount of the resource that only this node has, to place actors here."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == node_id]
    names = [name for name in node["Resources"] if name.startswith("node:")]
    return {next(name for name in names if "internal" not in name): 0.001}


def _max_concurrent(first: dict[str, Any]) -> int:
    """Return how many trainings like that of the first trial fit on the cluster at once."""
    import ray

    recipe = check_recipe(TrainRecipe, first["train"])
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_gpus >= recipe.num_workers:
        return max(1, num_gpus // recipe.num_workers)
    return max(1, int(num_cpus() / (recipe.num_workers * recipe.cpus_per_worker)))
