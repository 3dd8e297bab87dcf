"""Fine-tune a VLM on views of the data, under Ray Train, on any number of workers."""

from __future__ import annotations

import json
import logging

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.telemetry import MetricsLog
from consomme.execution.runs import Run, folders_of
from consomme.execution.session import ray_session
from consomme.pipelines.train.checks import _check_adapter
from consomme.pipelines.train.outputs import CURVE
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.model_folder import model_content_hash, model_folder, portable_path
from consomme.storage.shards import find_shards, shards_fingerprint

logger = logging.getLogger(__name__)


def run(recipe: TrainRecipe) -> Manifest:
    """Train; an interrupted run goes on from its last checkpoint when started again."""
    return open_run(recipe).once(_train)


def open_run(recipe: TrainRecipe) -> Run[None]:
    """Check the recipe and resolve its inputs; writes nothing."""
    if not recipe.data:
        raise RecipeError("data: found no source, expected at least one {view: …} or {inputs: […]}")
    if recipe.global_batch < recipe.num_workers:
        raise RecipeError(
            f"global_batch={recipe.global_batch} is less than num_workers={recipe.num_workers}:"
            " some workers would have no sample in a step; raise it or take fewer workers"
        )
    at_least_one = ("shuffle_units", "max_upscale", "checkpoint_every", "keep_checkpoints")
    for key, least in ((key, 1) for key in at_least_one):
        if getattr(recipe, key) < least:
            raise RecipeError(f"{key}: found {getattr(recipe, key)}, expected at least {least}")
    for key in ("pack_tokens", "num_readers"):
        if getattr(recipe, key) is not None and getattr(recipe, key) < 1:
            raise RecipeError(f"{key}: found {getattr(recipe, key)}, expected at least 1, or null")
    if recipe.export_checkpoint == "best" and not recipe.evaluation.data:
        raise RecipeError(
            "export_checkpoint: found best, but evaluation.data is empty, so no checkpoint is"
            " better than another; name samples to measure them on, or set export_checkpoint=last"
        )
    if recipe.min_workers is not None and not 1 <= recipe.min_workers <= recipe.num_workers:
        raise RecipeError(
            f"min_workers: found {recipe.min_workers}, expected 1 to num_workers"
            f"={recipe.num_workers}, or null"
        )
    if recipe.save_adapter:
        _check_adapter(recipe.trainability)
    start = model_folder(recipe.model)
    inputs = {"model": model_content_hash(start)}
    parents, reads = [], [start]
    named = [(f"data[{k}]", source) for k, source in enumerate(recipe.data)]
    named += [(f"evaluation.data[{k}]", source) for k, source in enumerate(recipe.evaluation.data)]
    for name, source in named:
        if (source.view is None) == (not source.inputs):
            raise RecipeError(f"{name}: expected either view or inputs, not both, not none")
        if source.inputs:
            shards = find_shards(source.inputs)
            inputs[name] = shards_fingerprint(shards)
            reads += folders_of(shards)
        parents += [url for url in (source.view, source.captions) if url]
    if tuned := recipe.layers.get("tuned"):
        inputs["tuned"] = model_content_hash(model_folder(tuned))
        reads.append(model_folder(tuned))
    return Run.open("train", recipe, None, inputs=inputs, parents=parents, reads=reads)


def _train(run: Run[None]) -> Manifest:
    recipe: TrainRecipe = run.recipe
    from consomme.pipelines.train.driver import fit_on_ray
    from consomme.pipelines.train.machine import utilization
    from consomme.pipelines.train.outputs import evaluations
    from consomme.pipelines.train.telling import step_metrics

    with ray_session():
        result = fit_on_ray(recipe, portable_path(recipe.model), run)
    counts, peak = result.pop("counts"), result.pop("peak_bytes")
    curve = json.loads(run.folder.store.read(CURVE))
    with MetricsLog(run.folder.store, resume_step=0) as log:
        for point in curve:
            for name, value in step_metrics(point).items():
                log.log(name, value, point["step"])
        for point in (found := evaluations(run.folder)):
            log.log("eval/loss_nats", point["loss"], int(point["step"]))
    times = sorted(point["seconds"] for point in curve)
    tokens_per_s = sum(p["num_positions"] for p in curve) / sum(times)
    return run.finish(
        counts=counts,
        decisions=result,
        metrics={
            "train/first_loss_nats": curve[0]["loss"],
            "train/last_loss_nats": sum(p["loss"] for p in curve[-10:]) / len(curve[-10:]),
            "train/step_s": times[len(times) // 2],
            "train/peak_bytes": peak,
            "train/tokens_per_s": tokens_per_s,
        }
        | ({"eval/best_loss_nats": min(p["loss"] for p in found)} if found else {})
        | utilization(recipe, result["gpu_name"], result["flops_per_token"], tokens_per_s),
        outputs={"model": "model", "curve": CURVE, "rejects": "rejects"}
        | ({"adapter": "adapter"} if recipe.save_adapter else {}),
    )
