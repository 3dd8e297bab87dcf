"""Walks through the trials of a sweep, with Ray Tune doing those that are not done.

One decision is made here: what was asked for is written down before it begins, and what came of it
when it ends, so an interrupted sweep goes on with the same trials and with what it has learned.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from consomme.base.telemetry import Progress
from consomme.execution.session import is_private, num_cpus, ray_session
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.trial import LOSS, STEP, Trial, is_end
from consomme.pipelines.sweep.walk import Walk
from consomme.pipelines.sweep.worker import trial_trainable
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.stores.store import Store
from consomme.sweep.stoppers import Asha

logger = logging.getLogger(__name__)


def run_trials(plan: SweepPlan, store: Store) -> list[Trial]:
    """Do every trial that is not done.

    Raises:
        ClusterError: The infrastructure failed; what is done is kept.
    """
    walk = Walk(plan, store)
    first = walk.next()
    if first is not None:
        with ray_session():
            _tune(walk, first)
    return walk.trials


def _tune(walk: Walk, first: Trial) -> None:
    """Let Ray Tune do the trials from `first` on."""
    import ray
    from ray import tune

    plan = walk.plan
    is_stopped = isinstance(plan.stopper, Asha)
    trainable = tune.with_parameters(
        trial_trainable(),
        cwd=os.getcwd(),
        address="" if is_private() else ray.get_runtime_context().gcs_address,
        benchmarks=list(plan.recipe.benchmarks),
        reports=is_stopped,
    )
    with (
        tempfile.TemporaryDirectory(prefix="consomme-tune-") as scratch,
        Progress(plan.num_trials, "sweep", "trials") as progress,
    ):
        progress.advance(walk.num_ended)
        tuner = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([_beside_us()])),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(walk, first, progress),
                scheduler=_scheduler(walk) if is_stopped else None,
                num_samples=-1,
                max_concurrent_trials=plan.recipe.max_concurrent or _room(plan, first),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(verbose=0, storage_path=scratch),
        )
        results = tuner.fit()
    for error in results.errors:
        raise error


def _beside_us() -> dict[str, float]:
    """A resource that only the node has on which the sweep runs, and hardly any of it."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == here]
    names = [name for name in node["Resources"] if name.startswith("node:")]
    return {next(name for name in names if "internal" not in name): 0.001}


def _room(plan: SweepPlan, first: Trial) -> int:
    """Trials the cluster has room for at once, by what the first of them needs."""
    import ray

    recipe = plan.train_recipe(first.keys)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus >= recipe.num_workers:
        return max(1, gpus // recipe.num_workers)
    return max(1, int(num_cpus() / (recipe.num_workers * recipe.cpus_per_worker)))


def _scheduler(walk: Walk) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    class GivesUp(FIFOScheduler):  # type: ignore[misc]
        """Lets the walk decide which trials go on."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if is_end(result) or walk.goes_on(trial.config["number"], result[STEP], result[LOSS]):
                return str(FIFOScheduler.CONTINUE)
            return str(FIFOScheduler.STOP)

    return GivesUp()


def _searcher(walk: Walk, first: Trial, progress: Progress) -> Any:
    from ray.tune.search import Searcher

    class Asks(Searcher):  # type: ignore[misc]
        """Hands the walk's trials to Tune, and Tune's results to the walk."""

        def __init__(self, walk: Walk, first: Trial, progress: Progress) -> None:
            super().__init__()
            self.walk, self.progress = walk, progress
            self.waiting: list[Trial] = [first]
            self.running: dict[str, Trial] = {}

        def __getstate__(self) -> dict[str, Any]:
            """Tune pickles searchers to restore them; ours resumes from what the walk wrote."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            trial = self.waiting.pop(0) if self.waiting else self.walk.next()
            if trial is None:
                return Searcher.FINISHED
            self.running[trial_id] = trial
            logger.info("sweep: trial %s begins", trial.name)
            return {
                "number": trial.number,
                "train": self.walk.plan.train_values(trial.keys),
            }

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            trial = self.running.pop(trial_id)
            if error or not result:
                # Not the trial's fault; it is done again when the sweep is.
                return
            self.walk.end(_ended(self.walk, trial, result))
            self.progress.advance(max(0, self.walk.num_ended - self.progress.done))

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("{}")

        def restore(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).read_text()

    return Asks(walk, first, progress)


def _ended(walk: Walk, trial: Trial, result: dict[str, Any]) -> Trial:
    """What a trial's last report says of it."""
    trial = walk.trials[trial.number]
    if result.get("failure"):
        ended = replace(trial, state="failed", reason=result["failure"])
    elif result.get("train"):
        judged = load_manifest(result["evaluate"]) if result["evaluate"] else None
        ended = walk.finished(trial, load_manifest(result["train"]), judged)
    else:
        steps = walk.plan.train_recipe(trial.keys).num_steps
        reason = f"after {result[STEP]} of {steps} steps, loss {result[LOSS]:.4g}"
        ended = replace(trial, state="stopped", reason=reason)
    outcome = ended.reason or f"{walk.plan.metric} {ended.value:.4g}"
    logger.info("sweep: trial %s is %s: %s", ended.name, ended.state, outcome)
    return ended
