"""Walks through the trials of a sweep, with Ray Tune doing those that are not done.

One decision is made here: what was asked for is written down before it begins, and what came of it
when it ends, so an interrupted sweep goes on with the same trials and with what it has learned.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from consomme.base.manifest import Manifest
from consomme.base.telemetry import Progress
from consomme.pipelines import evaluate, train
from consomme.pipelines.runs import NotDoneError, looking
from consomme.pipelines.session import is_private, num_cpus, ray_session
from consomme.pipelines.sweep_plan import SweepPlan
from consomme.pipelines.sweep_worker import LOSS, STEP, checkpoint_losses, is_end, trial_trainable
from consomme.storage.files import Store
from consomme.storage.ledger import RunFolder, load_manifest
from consomme.sweep.keys import label
from consomme.sweep.stoppers import Asha

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial, and what came of it."""

    number: int
    """From 0, in the order they were asked for."""

    keys: dict[str, Any]
    """Recipe key -> value."""

    state: Literal["asked", "done", "stopped", "failed"] = "asked"
    reason: str = ""
    """Why it failed, or where it was stopped."""

    train: str = ""
    """Folder of the train run."""

    evaluate: str = ""
    """Folder of the evaluate run; empty if there is no benchmark."""

    value: float | None = None
    """What trials are compared by, of one that is done."""

    rungs: dict[str, float] = field(default_factory=dict)
    """Steps -> loss, where a stopper looked."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Of both runs; `optimizer_bytes` and `num_trainable` beside them."""

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"{self.number} ({label(self.keys)})"


class Walk:
    """The trials of a sweep, as far as they were asked for."""

    def __init__(self, plan: SweepPlan, store: Store) -> None:
        """Take up what earlier attempts wrote down."""
        self.plan, self.store = plan, store
        self.search = plan.searcher.begin(plan.space, plan.mode)
        self.trials: list[Trial] = []
        self._again: list[int] = []
        self._running: dict[str, list[Trial]] = {}
        self._stopper = plan.stopper if isinstance(plan.stopper, Asha) else None
        while store.exists(_path(len(self.trials))):
            trial = Trial(**json.loads(store.read(_path(len(self.trials)))))
            self.search.recall(trial.keys)
            self.trials.append(trial)
            if trial.state == "stopped":
                self.search.tell(trial.number, None)
            elif trial.state == "done" and self._look(trial):
                self.search.tell(trial.number, trial.value)
            else:
                # Failures are tried again: what was wrong may have been mended.
                self._again.append(trial.number)

    @property
    def num_ended(self) -> int:
        """Trials that something came of."""
        return sum(trial.state != "asked" for trial in self.trials)

    def next(self) -> Trial | None:
        """The next trial that is to be begun, written down; None if there is none left.

        One that makes the same run as another that goes on ends with it.
        """
        while (trial := self._ask()) is not None:
            done = self._look(trial)
            if done is not None:
                logger.info("sweep: trial %s is done already", done.name)
                self.end(done)
                continue
            twins = self._running.setdefault(self.plan.mark(trial.keys), [])
            twins.append(trial)
            if len(twins) == 1:
                return trial
        return None

    def _ask(self) -> Trial | None:
        if self._again:
            return self.trials[self._again.pop(0)]
        keys = self.search.ask()
        if keys is None:
            return None
        trial = Trial(number=len(self.trials), keys=keys)
        self.trials.append(trial)
        self._write(trial)
        return trial

    def _look(self, trial: Trial) -> Trial | None:
        """Find a trial done, by whomever."""
        try:
            with looking():
                trained = train.run(self.plan.train_recipe(trial.keys))
                judge = self.plan.evaluate_recipe(trained.name, trained.url)
                judged = evaluate.run(judge) if judge else None
        except NotDoneError:
            return None
        return self.finished(trial, trained, judged)

    def finished(self, trial: Trial, trained: Manifest, judged: Manifest | None) -> Trial:
        """Gather what a trial's runs say."""
        metrics = {**trained.metrics, **(judged.metrics if judged else {})}
        metrics |= {
            name: float(trained.decisions[name]) for name in ("optimizer_bytes", "num_trainable")
        }
        return replace(
            trial,
            state="done",
            reason="",
            train=trained.url,
            evaluate=judged.url if judged else "",
            value=metrics[self.plan.metric],
            rungs=self._rungs(trained.url) or trial.rungs,
            metrics=metrics,
        )

    def _rungs(self, url: str) -> dict[str, float]:
        """What a stopper would have seen of a training."""
        if self._stopper is None:
            return {}
        folder = RunFolder.at(url)
        curve = json.loads(folder.store.read(train.CURVE))
        every = int(folder.manifest().recipe["checkpoint_every"])
        losses = checkpoint_losses(curve, every)
        return {
            str(step): losses[step // every - 1]
            for step in self._stopper.rungs(len(curve))
            if step % every == 0
        }

    def goes_on(self, number: int, step: int, loss: float) -> bool:
        """Whether a trial that has come this far is worth going on with; writes it down."""
        assert self._stopper is not None
        own = self.trials[number]
        if step not in self._stopper.rungs(step + 1):
            return True
        self.trials[number] = replace(own, rungs={**own.rungs, str(step): loss})
        self._write(self.trials[number])
        reached = [t.rungs[str(step)] for t in self.trials if str(step) in t.rungs]
        return self._stopper.goes_on(loss, reached)

    def end(self, trial: Trial) -> None:
        """Take what came of a trial."""
        twins = self._running.pop(self.plan.mark(trial.keys), [trial])
        for twin in twins:
            ended = replace(trial, number=twin.number, keys=twin.keys)
            self.trials[twin.number] = ended
            self._write(ended)
            self.search.tell(twin.number, ended.value)

    def _write(self, trial: Trial) -> None:
        self.store.write(_path(trial.number), json.dumps(asdict(trial), indent=1).encode())


def _path(number: int) -> str:
    return f"trials/{number:05d}.json"


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
    told = ended.reason or f"{walk.plan.metric} {ended.value:.4g}"
    logger.info("sweep: trial %s is %s: %s", ended.name, ended.state, told)
    return ended
