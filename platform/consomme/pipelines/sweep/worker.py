"""What Ray Tune runs for one trial: a training, then an evaluation, as their verbs do them.

One decision is made here: a trial is driven beside the sweep, on its node and in its folder, and
claims nothing; what it starts claims what it needs. So drivers never starve workers, and relative
paths mean what they mean to the sweep.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future, wait
from typing import Any

from consomme.base.errors import ClusterError, ConsommeError
from consomme.base.recipe import check_recipe
from consomme.execution.errors import own_errors
from consomme.execution.runs import RunNotDoneError, looking
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.sweep.plan import judge_of
from consomme.pipelines.sweep.trial import LOSS, STEP, checkpoint_losses, is_end
from consomme.pipelines.train import run as train
from consomme.pipelines.train.outputs import CURVE
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.stores.store import Store

LOOK_EVERY_S = 1.0
"""Seconds between looks at a trial that may be given up."""

SNAPSHOT = "checkpoints/checkpoint_manager_snapshot.json"
"""Where Ray Train 2.60 says which checkpoints of a run are in storage."""

END_S = 60.0
"""Seconds that a trial which is given up may take to end."""


class TrialWork:
    """One trial while it is done, by a thread of this process."""

    def __init__(self, recipe: TrainRecipe, benchmarks: Any, *, reports: bool) -> None:
        """Begin.

        Args:
            recipe: Of the training.
            benchmarks: What the model is measured on.
            reports: Whether to tell of every checkpoint, for a stopper.
        """
        self.recipe, self.benchmarks = recipe, benchmarks
        self._store = _store_of(recipe) if reports else None
        self._told, self._is_trained = 0, False
        self._done: Future[dict[str, Any]] = Future()
        # Given up, a trial is waited for as long as it takes to end its training, and no longer.
        threading.Thread(target=self._work, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """Wait for a checkpoint, or for the end, and tell of it.

        Checkpoints of an earlier attempt are told of again, so that a stopper learns of them.

        Returns:
            Steps and loss; at the end also `train` and `evaluate`, the folders of the runs, or
            `failure`, why there are none.

        Raises:
            ClusterError: The infrastructure failed, not the trial.
        """
        while not self._done.done():
            wait([self._done], timeout=None if self._store is None else LOOK_EVERY_S)
            found = self._checkpoint()
            if found is not None:
                return found
        return self._done.result()

    def _checkpoint(self) -> dict[str, Any] | None:
        """The next checkpoint that was not told of; the last step is told of at the end."""
        if self._store is None or self._is_trained or not self._store.exists(CURVE):
            return None
        every = self.recipe.checkpoint_every
        losses = checkpoint_losses(json.loads(self._store.read(CURVE)), every)
        step = (self._told + 1) * every
        if len(losses) <= self._told or step >= self.recipe.num_steps:
            return None
        if kept_step(self._store) < step:
            # On its way to storage: given up now, the trial could not go on from it.
            return None
        self._told += 1
        return {STEP: step, LOSS: losses[self._told - 1]}

    def _work(self) -> None:
        try:
            self._done.set_result(self._do())
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            self._done.set_exception(error)

    def _do(self) -> dict[str, Any]:
        recipe = self.recipe
        try:
            with own_errors():
                trained = train.run(recipe)
                # What is trained is measured as well; nothing would be gained by giving it up.
                self._is_trained = True
                judge = judge_of(recipe.name, trained.url, self.benchmarks, recipe.root)
                judged = evaluate.run(judge) if judge else None
        except ClusterError:
            raise
        except ConsommeError as error:
            return {STEP: recipe.num_steps, LOSS: float("inf"), "failure": str(error)}
        return {
            STEP: recipe.num_steps,
            LOSS: trained.metrics["train/last_loss_nats"],
            "train": trained.url,
            "evaluate": judged.url if judged else "",
        }

    def give_up(self) -> None:
        """End it, if it goes on; its checkpoints stay, and what it had claimed is free again."""
        if not self._done.done():
            from consomme.pipelines.train.trainer import abort_all

            abort_all()
            wait([self._done], timeout=END_S)


def trial_trainable() -> Any:
    """The class that Tune makes an actor of; it does one trial after the other."""
    from ray import tune

    class Driver(tune.Trainable):  # type: ignore[misc]
        """Drives trials."""

        def setup(
            self,
            config: dict[str, Any],
            cwd: str = "",
            address: str = "",
            benchmarks: Any = (),
            reports: bool = False,
        ) -> None:
            """Get ready for any trial.

            Args:
                config: `train`, the train recipe as plain values.
                cwd: Folder that relative paths start from.
                address: Ray cluster; empty if Ray is private to the sweep.
                benchmarks: What models are measured on.
                reports: Whether to report at every checkpoint.
            """
            self.cwd, self.benchmarks, self.reports = cwd, benchmarks, reports
            self.work: TrialWork | None = None
            self.train = config["train"]
            if address:
                os.environ["RAY_ADDRESS"] = address

        def step(self) -> dict[str, Any]:
            os.chdir(self.cwd)
            if self.work is None:
                recipe = check_recipe(TrainRecipe, self.train)
                self.work = TrialWork(recipe, self.benchmarks, reports=self.reports)
            found = self.work.next()
            return found | {"done": is_end(found)}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self.train = new_config["train"]
            return True

        def cleanup(self) -> None:
            if self.work is not None:
                self.work.give_up()
            self.work = None

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """Nothing to keep: a trial is what its train recipe says."""
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing was kept."""

    return Driver


def _store_of(recipe: TrainRecipe) -> Store | None:
    """Where a training that is not done will be."""
    try:
        with looking():
            train.run(recipe)
    except RunNotDoneError as pending:
        return pending.folder.store
    return None


def kept_step(store: Store) -> int:
    """Step of the last checkpoint of a training that is in storage; 0 if there is none."""
    try:
        found = json.loads(store.read(SNAPSHOT))["latest_checkpoint_result"]
    except (FileNotFoundError, json.JSONDecodeError):
        # Not there yet, or half written.
        return 0
    return int(found["metrics"]["step"]) if found else 0
