"""Drive a training under Ray Train: plan it, run it, follow its steps, and export its model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from consomme.base.errors import ClusterError, ConsommeError
from consomme.base.schema import to_plain
from consomme.base.telemetry import Progress
from consomme.execution.runs import Run
from consomme.execution.session import num_cpus
from consomme.pipelines.train.context import TrainContext, TrainResult
from consomme.pipelines.train.curve import CurveFile
from consomme.pipelines.train.export import export_checkpoint
from consomme.pipelines.train.outputs import EVAL_LOSS, PLAN
from consomme.pipelines.train.progress import StepMonitor
from consomme.pipelines.train.recipe import TrainRecipe

if TYPE_CHECKING:
    from consomme.pipelines.train.machine import Machine
    from consomme.train.planner import ResourcePlan

logger = logging.getLogger(__name__)


def fit_on_ray(run: Run[Any]) -> TrainResult:
    """Train on the running Ray cluster, and export the model.

    Raises:
        ClusterError: The cluster is too small.
        RecipeError: The training cannot fit into the memory there is.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from consomme.pipelines.train.machine import machine_of_cluster
    from consomme.pipelines.train.trackers import opened
    from consomme.pipelines.train.trainer import Trainer, storage_of
    from consomme.pipelines.train.worker import train_worker
    from consomme.train.parallel.strategy import BACKENDS

    recipe: TrainRecipe = run.recipe
    context = TrainContext.resolve(recipe, run.folder)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    min_workers = recipe.min_workers or recipe.num_workers
    use_gpu = gpus >= min_workers
    if gpus and not use_gpu:
        logger.warning(
            "train: the cluster has %d GPUs for %d workers, so they train on CPUs; num_workers=%d"
            " would train on GPUs",
            gpus,
            min_workers,
            gpus,
        )
    evaluation_cpus = recipe.evaluation.cpus if recipe.evaluation.data else 0.0
    train_cpus = min_workers if use_gpu else min_workers * recipe.cpus_per_worker
    if train_cpus + evaluation_cpus > num_cpus():
        raise ClusterError(
            f"num_workers={min_workers} needs {train_cpus:g} CPUs and evaluation"
            f" {evaluation_cpus:g}, the cluster has {num_cpus()}; lower num_workers,"
            " cpus_per_worker or evaluation.cpus"
        )
    machine = machine_of_cluster(use_gpu)
    plan = _plan(context, machine)
    with (
        opened(
            recipe.trackers, run.folder.url, recipe.name, run.fingerprint, to_plain(recipe)
        ) as writers,
        Progress(recipe.num_steps, "train", "steps") as progress,
        contextlib.closing(StepMonitor(run.folder, progress, writers)) as monitor,
    ):
        trainer = Trainer(
            train_worker,
            curve=CurveFile(context.folder_url),
            monitor=monitor,
            train_loop_config={"context": context},
            torch_config=TorchConfig(backend=BACKENDS[machine.device]),
            scaling_config=ScalingConfig(
                num_workers=(min_workers, recipe.num_workers)
                if recipe.min_workers
                else recipe.num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 1.0 if use_gpu else recipe.cpus_per_worker}
                | ({"GPU": 1.0} if use_gpu else {}),
            ),
            run_config=RunConfig(
                name="checkpoints",
                **storage_of(run.folder.url),
                failure_config=FailureConfig(max_failures=2),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=recipe.keep_checkpoints,
                    checkpoint_score_attribute=EVAL_LOSS if recipe.evaluation.data else None,
                    checkpoint_score_order="min",
                ),
            ),
            validation_config=_validation(context) if recipe.evaluation.data else None,
        )
        ended = _in_thread(trainer.fit)
    result: TrainResult | ConsommeError = ended.return_value
    if isinstance(result, ConsommeError):
        raise result
    exported_step = None
    if recipe.export_checkpoint == "best":
        losses = {one: metrics[EVAL_LOSS] for one, metrics in ended.best_checkpoints}
        best = min(losses, key=lambda one: losses[one])
        exported_step = ray.get(
            ray.remote(export_checkpoint).options(num_cpus=1).remote(best, context)
        )
    return dataclasses.replace(
        result,
        exported_step=exported_step,
        flops_per_token=plan.flops_per_token,
        gpu_name=machine.gpu_name,
    )


def _plan(context: TrainContext, machine: Machine) -> ResourcePlan:
    """Work out what the run takes, log and store it, and refuse what cannot fit."""
    from consomme.pipelines.train.machine import check
    from consomme.pipelines.train.plan import as_json, plan_of, summary_lines

    plan = plan_of(context.recipe, context.start, machine)
    for line in (*summary_lines(plan), *plan.notes):
        logger.info("train: %s", line)
    context.folder.store.write(PLAN, json.dumps(as_json(plan), indent=1).encode())
    check(plan, machine, context.recipe)
    return plan


def _validation(context: TrainContext) -> Any:
    """Have each checkpoint evaluated by a Ray task of its own."""
    from ray.train import ValidationConfig

    from consomme.pipelines.train.evaluation import evaluate_checkpoint

    evaluation = context.recipe.evaluation
    return ValidationConfig(
        fn=functools.partial(evaluate_checkpoint, context=context),
        ray_remote_kwargs={
            "num_cpus": evaluation.cpus,
            "num_gpus": evaluation.gpus,
            "max_retries": 2,
        },
    )


def _in_thread(action: Callable[[], Any]) -> Any:
    """Run `action` in another thread and wait for it.

    In the main thread Ray Train 2.60 installs a Ctrl-C handler of its own, which ends the process
    with exit code 0 and stays installed after training. This way Ctrl-C interrupts the wait.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()
