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

from consomme.base.errors import ConsommeError
from consomme.base.manifest import FileSum
from consomme.base.schema import to_plain
from consomme.base.telemetry import Progress
from consomme.execution.errors import own_errors
from consomme.execution.runs import Run
from consomme.pipelines.train.asking import ask_exported, ask_start
from consomme.pipelines.train.checkpoint import CHECKPOINTS
from consomme.pipelines.train.choice import (
    CheckpointChoice,
    choose_checkpoint,
    score_attribute,
    score_order,
)
from consomme.pipelines.train.context import TrainContext, TrainResult
from consomme.pipelines.train.curve import CurveFile
from consomme.pipelines.train.export import check_export, export_checkpoint
from consomme.pipelines.train.outputs import PLAN
from consomme.pipelines.train.progress import StepMonitor
from consomme.pipelines.train.recipe import TrainRecipe

if TYPE_CHECKING:
    from consomme.pipelines.train.machine import Machine
    from consomme.train.planner import ResourcePlan

logger = logging.getLogger(__name__)


def fit_on_ray(run: Run[Any], attempt_no: int) -> TrainResult:
    """Train on the running Ray cluster, and export the model.

    Args:
        run: The started run.
        attempt_no: Its attempt; another one that begins stops this one.

    Raises:
        SupersededError: The run was started again elsewhere.
        RecipeError: The training cannot fit into the memory there is.
    """
    from consomme.pipelines.train.machine import machine_of_cluster
    from consomme.pipelines.train.trackers import opened

    recipe: TrainRecipe = run.recipe
    context = TrainContext.resolve(recipe, run.folder, run.inputs["model"], attempt_no)
    use_gpu = _use_gpu(recipe)
    machine = machine_of_cluster(use_gpu)
    plan = _plan(context, machine)
    check_export(context)
    start = _ask_start(context, use_gpu=use_gpu)
    with (
        opened(
            recipe.trackers, run.folder.url, recipe.name, run.fingerprint, to_plain(recipe)
        ) as writers,
        Progress(recipe.num_steps, "train", "steps") as progress,
        contextlib.closing(StepMonitor(run.folder, progress, writers)) as monitor,
    ):
        ended = _in_thread(_trainer(context, machine, monitor).fit)
    result: TrainResult | ConsommeError = ended.return_value
    if isinstance(result, ConsommeError):
        raise result
    context.check_current()
    choice = choose_checkpoint(context, ended.best_checkpoints)
    step, written = _export_best(context, choice)
    evaluation = recipe.evaluation
    told = choice.told(start) if evaluation.asks or evaluation.report else None
    if told is not None and evaluation.report:
        told["report"] = _remote(context, ask_exported, use_gpu=use_gpu)
    return dataclasses.replace(
        result,
        exported_step=step,
        choice=told,
        written=written or result.written,
        flops_per_token=plan.flops_per_token,
        gpu_name=machine.gpu_name,
    )


def _min_workers(recipe: TrainRecipe) -> int:
    return recipe.min_workers or recipe.num_workers


def _use_gpu(recipe: TrainRecipe) -> bool:
    """Whether the cluster has enough GPUs; warns if it has some, but too few."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    min_workers = _min_workers(recipe)
    if 0 < gpus < min_workers:
        logger.warning(
            "train: the cluster has %d GPUs for %d workers, so they train on CPUs; num_workers=%d"
            " would train on GPUs",
            gpus,
            min_workers,
            gpus,
        )
    return gpus >= min_workers


def _trainer(context: TrainContext, machine: Machine, monitor: StepMonitor) -> Any:
    """Configure Ray Train."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from consomme.pipelines.train.ray_storage import storage_of
    from consomme.pipelines.train.trainer import Trainer
    from consomme.pipelines.train.worker import train_worker
    from consomme.train.parallel.strategy import BACKENDS

    recipe = context.recipe
    use_gpu = machine.device != "cpu"
    resources = {"CPU": 1.0, "GPU": 1.0} if use_gpu else {"CPU": recipe.cpus_per_worker}
    num_workers: int | tuple[int, int] = recipe.num_workers
    if recipe.min_workers:
        num_workers = (recipe.min_workers, recipe.num_workers)
    return Trainer(
        train_worker,
        curve=CurveFile(context.folder_url),
        monitor=monitor,
        check=context.check_current,
        train_loop_config={"context": context},
        torch_config=TorchConfig(backend=BACKENDS[machine.device]),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            **storage_of(context.folder_url),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=recipe.keep_checkpoints,
                checkpoint_score_attribute=score_attribute(recipe),
                checkpoint_score_order=score_order(recipe),
            ),
        ),
        validation_config=(
            _validation(context, use_gpu=use_gpu) if recipe.evaluation.is_wanted else None
        ),
    )


def _ask_start(context: TrainContext, *, use_gpu: bool) -> dict[str, Any] | None:
    """Let the model that training starts from answer; None if checkpoints answer nothing.

    Before the first step, so that a benchmark that the model cannot be asked ends the run here.
    """
    if not context.recipe.evaluation.asks:
        return None
    found: dict[str, Any] = _remote(context, ask_start, use_gpu=use_gpu)
    return found


def _remote(context: TrainContext, action: Callable[..., Any], *, use_gpu: bool) -> Any:
    """Run something that answers benchmarks as a Ray task with the resources of evaluation."""
    import ray

    with own_errors():
        return ray.get(
            ray.remote(action).options(**_task_options(context, use_gpu=use_gpu)).remote(context)
        )


def _task_options(context: TrainContext, *, use_gpu: bool) -> dict[str, Any]:
    evaluation = context.recipe.evaluation
    options: dict[str, Any] = {
        "num_cpus": evaluation.cpus,
        "num_gpus": evaluation.gpus,
        "max_retries": 2,
    }
    if use_gpu and not evaluation.gpus:
        # A task that claims no GPU may still see those that training holds.
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    return options


def _export_best(
    context: TrainContext, choice: CheckpointChoice
) -> tuple[int | None, dict[str, FileSum]]:
    """Export the checkpoint that was chosen, if the recipe says so.

    Returns:
        Its step, and the sums of the exported files.
    """
    import ray

    if context.recipe.export_checkpoint != "best":
        return None, {}
    export = ray.remote(export_checkpoint).options(num_cpus=1)
    exported: tuple[int, dict[str, FileSum]] = ray.get(export.remote(choice.checkpoint, context))
    return exported


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


def _validation(context: TrainContext, *, use_gpu: bool) -> Any:
    """Have each checkpoint evaluated by a Ray task of its own."""
    from ray.train import ValidationConfig

    from consomme.pipelines.train.evaluation import evaluate_checkpoint

    return ValidationConfig(
        fn=functools.partial(evaluate_checkpoint, context=context),
        ray_remote_kwargs=_task_options(context, use_gpu=use_gpu),
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
