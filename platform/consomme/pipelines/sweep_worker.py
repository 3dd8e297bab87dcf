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
from consomme.base.manifest import Manifest
from consomme.base.recipe import check_recipe
from consomme.pipelines import evaluate, train
from consomme.pipelines.failures import own_errors
from consomme.pipelines.runs import NotDoneError, looking
from consomme.pipelines.sweep_plan import judge_of

LOOK_EVERY_S = 1.0
"""Seconds between looks at a trial that may be given up."""

STEP, LOSS = "step", "loss"
"""What a stopper compares: steps done, and the mean loss since the checkpoint before."""


def run_trial(
    config: dict[str, Any], *, cwd: str, address: str, benchmarks: Any, reports: bool
) -> None:
    """Do one trial and report its runs, or why it failed.

    Args:
        config: `train`, the train recipe as plain values, and `number`.
        cwd: Folder that relative paths start from.
        address: Ray cluster; empty if Ray is private to the sweep.
        benchmarks: What the model is measured on.
        reports: Whether to report at every checkpoint, for a stopper.

    Raises:
        ClusterError: The infrastructure failed, not the trial.
    """
    from ray import tune

    os.chdir(cwd)
    if address:
        os.environ["RAY_ADDRESS"] = address
    recipe = check_recipe(train.TrainRecipe, config["train"])
    ends = {STEP: recipe.num_steps, LOSS: float("inf")}
    try:
        with own_errors():
            trained = _train(recipe) if reports else train.run(recipe)
            judge = judge_of(recipe.name, trained.url, benchmarks, recipe.root)
            judged = evaluate.run(judge) if judge else None
    except ClusterError:
        raise
    except ConsommeError as error:
        tune.report({**ends, "failure": str(error)})
        return
    ends[LOSS] = trained.metrics["train/last_loss_nats"]
    tune.report({**ends, "train": trained.url, "evaluate": judged.url if judged else ""})


def _train(recipe: train.TrainRecipe) -> Manifest:
    """Train, and report every checkpoint to Tune, which may end this process at any report.

    Checkpoints of an earlier attempt are reported again, so that a stopper learns of them.
    """
    from ray import tune

    try:
        with looking():
            return train.run(recipe)
    except NotDoneError as pending:
        store = pending.folder.store
    work: Future[Manifest] = Future()
    # When Tune gives the trial up, nobody waits for a daemon.
    threading.Thread(target=_settle, args=(work, recipe), daemon=True).start()
    told = 0
    while not work.done():
        wait([work], timeout=LOOK_EVERY_S)
        curve = json.loads(store.read(train.CURVE)) if store.exists(train.CURVE) else []
        for mean in checkpoint_losses(curve, recipe.checkpoint_every)[told:]:
            told += 1
            if told * recipe.checkpoint_every < recipe.num_steps:
                tune.report({STEP: told * recipe.checkpoint_every, LOSS: mean})
    return work.result()


def _settle(work: Future[Manifest], recipe: train.TrainRecipe) -> None:
    try:
        work.set_result(train.run(recipe))
    except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
        work.set_exception(error)


def checkpoint_losses(curve: list[dict[str, float]], every: int) -> list[float]:
    """Mean loss of the steps up to each checkpoint, from the one before it."""
    return [
        sum(point["loss"] for point in curve[at - every : at]) / every
        for at in range(every, len(curve) + 1, every)
    ]
