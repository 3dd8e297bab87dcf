"""Run a training under Ray Train: plan it, watch it, tell how it goes, and take its model.

One decision is made here: the driver learns how a run goes from its folder alone, wherever the
workers are, and whoever else looks into the folder sees the same.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consomme.base.errors import ClusterError, ConsommeError
from consomme.base.schema import to_plain
from consomme.base.telemetry import Progress
from consomme.execution.runs import Run
from consomme.execution.session import is_private, num_cpus
from consomme.pipelines.train.outputs import EVAL_LOSS, PLAN
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.telling import _watch
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import portable_path
from consomme.storage.shards import shard_urls
from consomme.storage.stores.open import absolute_url

if TYPE_CHECKING:
    from consomme.pipelines.train.machine import Machine
    from consomme.train.planner import ResourcePlan

logger = logging.getLogger(__name__)


def fit_on_ray(recipe: TrainRecipe, start: str, run: Run[Any]) -> dict[str, Any]:
    """Run the workers and return what rank 0 says of the run."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from consomme.pipelines.train.machine import machine_of_cluster
    from consomme.pipelines.train.trackers import opened
    from consomme.pipelines.train.trainer import Trainer, storage_of
    from consomme.pipelines.train.worker import train_worker
    from consomme.train.parallel.strategy import BACKENDS

    folder = run.folder
    gpus = int(ray.cluster_resources().get("GPU", 0))
    least = recipe.min_workers or recipe.num_workers
    use_gpu = gpus >= least
    if gpus and not use_gpu:
        logger.warning(
            "train: the cluster has %d GPUs for %d workers, so they train on CPUs; num_workers=%d"
            " would train on GPUs",
            gpus,
            least,
            gpus,
        )
    beside = recipe.evaluation.cpus if recipe.evaluation.data else 0.0
    wanted = (least if use_gpu else least * recipe.cpus_per_worker) + beside
    if wanted > num_cpus():
        raise ClusterError(
            f"num_workers={least} needs {wanted - beside:g} CPUs and evaluation {beside:g}, the"
            f" cluster has {num_cpus()}; lower num_workers, cpus_per_worker or evaluation.cpus"
        )
    absolute = with_absolute_paths(recipe)
    machine = machine_of_cluster(use_gpu)
    made = _plan(recipe, start, folder, machine)
    trainer = Trainer(
        train_worker,
        train_loop_config={
            "recipe": absolute,
            "start": start,
            "folder": absolute_url(folder.url),
            # Workers cannot tell.
            "is_private": is_private(),
        },
        torch_config=TorchConfig(backend=BACKENDS[machine.device]),
        scaling_config=ScalingConfig(
            num_workers=(least, recipe.num_workers) if recipe.min_workers else recipe.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1.0 if use_gpu else recipe.cpus_per_worker}
            | ({"GPU": 1.0} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name="checkpoints",
            **storage_of(folder.url),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=recipe.keep_checkpoints,
                checkpoint_score_attribute=EVAL_LOSS if recipe.evaluation.data else None,
                checkpoint_score_order="min",
            ),
        ),
        validation_config=_validation(absolute, start, folder) if recipe.evaluation.data else None,
    )
    plain = to_plain(recipe)
    with (
        opened(recipe.trackers, folder.url, recipe.name, run.fingerprint, plain) as writers,
        Progress(recipe.num_steps, "train", "steps") as progress,
        _watch(folder, progress, writers),
    ):
        result = _in_thread(trainer.fit)
    summary: dict[str, Any] | ConsommeError = result.return_value
    if isinstance(summary, ConsommeError):
        raise summary
    if recipe.export_checkpoint == "best":
        loss = {one: metrics[EVAL_LOSS] for one, metrics in result.best_checkpoints}
        best = min(loss, key=lambda one: loss[one])
        summary["exported_step"] = ray.get(
            ray.remote(_export_checkpoint)
            .options(num_cpus=1)
            .remote(best, absolute, start, absolute_url(folder.url))
        )
    return summary | {"flops_per_token": made.flops_per_token, "gpu_name": machine.gpu_name}


def _plan(recipe: TrainRecipe, start: str, folder: RunFolder, machine: Machine) -> ResourcePlan:
    """Work out what the run takes, tell it, and stop what cannot fit."""
    from consomme.pipelines.train import machine as train_fit
    from consomme.pipelines.train import plan as train_plan

    made = train_plan.plan_of(recipe, start, machine)
    for line in (*train_plan.summary_lines(made), *made.notes):
        logger.info("train: %s", line)
    folder.store.write(PLAN, json.dumps(train_plan.as_json(made), indent=1).encode())
    train_fit.check(made, machine, recipe)
    return made


def _validation(recipe: TrainRecipe, start: str, folder: RunFolder) -> Any:
    """Have each checkpoint evaluated by a task of its own."""
    from ray.train import ValidationConfig

    from consomme.pipelines.train.evaluation import evaluate_checkpoint

    return ValidationConfig(
        fn=functools.partial(
            evaluate_checkpoint, recipe=recipe, start=start, folder=absolute_url(folder.url)
        ),
        ray_remote_kwargs={
            "num_cpus": recipe.evaluation.cpus,
            "num_gpus": recipe.evaluation.gpus,
            "max_retries": 2,
        },
    )


def _export_checkpoint(checkpoint: Any, recipe: TrainRecipe, start: str, folder: str) -> int:
    """Make a checkpoint the run's model; returns its step."""
    from safetensors.torch import load_file

    from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState
    from consomme.pipelines.train.export import export

    with checkpoint.as_directory() as path:
        seen = TrainState.of(Path(path))
        moved = load_file(Path(path) / WEIGHTS)
    export(recipe, start, seen.layers or (), moved, folder)
    return seen.step


def _in_thread(action: Callable[[], Any]) -> Any:
    """Run `action` outside the main thread and wait for it.

    In the main thread Ray Train 2.60 installs a Ctrl-C handler of its own, which ends the process
    with exit code 0 and stays installed after training. Here Ctrl-C interrupts the waiting.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()


def with_absolute_paths(recipe: TrainRecipe) -> TrainRecipe:
    """Make the data's paths absolute: Ray Train's workers have another current directory."""

    def found(source: TrainSource) -> TrainSource:
        return dataclasses.replace(
            source,
            view=source.view and absolute_url(source.view),
            inputs=tuple(shard_urls(source.inputs)) if source.inputs else (),
            captions=source.captions and absolute_url(source.captions),
        )

    evaluation = dataclasses.replace(
        recipe.evaluation, data=tuple(map(found, recipe.evaluation.data))
    )
    layers = recipe.layers
    if tuned := layers.get("tuned"):
        layers = layers | {"tuned": portable_path(tuned)}
    return dataclasses.replace(
        recipe, data=tuple(map(found, recipe.data)), evaluation=evaluation, layers=layers
    )
