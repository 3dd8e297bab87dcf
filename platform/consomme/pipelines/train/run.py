"""Fine-tune a VLM on views of the data, under Ray Train, on any number of workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.base.own_modules import module_inputs
from consomme.base.telemetry import MetricsLog
from consomme.evaluate.disjoint import NamedBenchmark, check_disjoint
from consomme.evaluate.guards import check_kept
from consomme.execution.runs import Run, folders_of, once
from consomme.execution.session import ray_session
from consomme.pipelines.train.checkpoint import uploaded_sums
from consomme.pipelines.train.curve import read_curve
from consomme.pipelines.train.outputs import CURVE
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.model_folder import model_hash, portable_path

logger = logging.getLogger(__name__)


def run(recipe: TrainRecipe) -> Manifest:
    """Train; an interrupted run resumes from its last checkpoint when started again.

    Raises:
        DataError: Every checkpoint lost more than a guard allows, or that of a run that is done.
    """
    manifest = once(open_run, recipe, _train)
    # It may have been done while guards only warned.
    kept = manifest.decisions.get("choice", {}).get("guards", ())
    check_kept(recipe.evaluation.guards, kept)
    return manifest


def open_run(recipe: TrainRecipe) -> Run[None]:
    """Resolve the inputs of a recipe; writes nothing.

    Raises:
        RecipeError: What chooses a checkpoint has questions that report.
    """
    from consomme.evaluate.benchmarks import data_inputs
    from consomme.pipelines.evaluate.in_memory import check_needs_no_judge

    modules = module_inputs(recipe.modules)
    evaluation = recipe.evaluation
    chooses = [evaluation.benchmark] if evaluation.benchmark is not None else []
    guards = enumerate(evaluation.guards)
    check_needs_no_judge(
        {
            **{f"evaluation.benchmark[{k}]": node for k, node in enumerate(chooses)},
            **{f"evaluation.guards[{k}].benchmark": one.benchmark for k, one in guards},
            **{f"evaluation.report[{k}]": node for k, node in enumerate(evaluation.report)},
        }
    )
    if not evaluation.reports_what_it_chose_by:
        check_disjoint(
            [NamedBenchmark(key="evaluation.benchmark", node=node) for node in chooses],
            [
                NamedBenchmark(key=f"evaluation.report[{number}]", node=node)
                for number, node in enumerate(evaluation.report)
            ],
            where=f"train {recipe.name}",
        )
    start = portable_path(recipe.model)
    inputs = {"model": model_hash(start, generates=False)}
    runs: dict[str, str | None] = {}
    reads = [start]
    named = [(f"data[{k}]", source) for k, source in enumerate(recipe.data)]
    named += [(f"evaluation.data[{k}]", source) for k, source in enumerate(recipe.evaluation.data)]
    for name, source in named:
        if source.inputs:
            shards = find_data(source.inputs)
            inputs |= data_fingerprints(
                shards, recipe.root, name, image_root=source.reading.image_root
            )
            reads += folders_of(shards)
        runs |= {f"{name}.view": source.view, f"{name}.captions": source.captions}
    inputs |= modules | data_inputs(chooses, "evaluation.benchmark")
    guarded = [guard.benchmark for guard in evaluation.guards]
    inputs |= data_inputs(guarded, "evaluation.guards")
    inputs |= data_inputs(evaluation.report, "evaluation.report")
    if tuned := recipe.layers.get("tuned"):
        tuned = portable_path(tuned)
        inputs["layers.tuned"] = model_hash(tuned, generates=False)
        reads.append(tuned)
    return Run.open(
        "train",
        recipe,
        None,
        inputs=inputs,
        runs=runs,
        reads=reads,
        data_of=list(dict.fromkeys(runs.values())),
    )


def _train(run: Run[None]) -> Manifest:
    from consomme.pipelines.train.driver import fit_on_ray
    from consomme.pipelines.train.machine import utilization
    from consomme.pipelines.train.outputs import evaluations
    from consomme.pipelines.train.progress import step_metrics

    recipe: TrainRecipe = run.recipe
    attempt_no = run.folder.start_attempt()
    with ray_session():
        result = fit_on_ray(run, attempt_no)
    curve = read_curve(run.folder)
    with MetricsLog(run.folder.store, resume_step=0) as log:
        for point in curve:
            for name, value in step_metrics(point).items():
                log.log(name, value, int(point["step"]))
        for point in (found := evaluations(run.folder)):
            for name, key in (("eval/loss_nats", "loss"), ("eval/score_fraction", "score")):
                if key in point:
                    log.log(name, point[key], int(point["step"]))
    times = sorted(point["seconds"] for point in curve)
    tokens_per_s = sum(p["num_positions"] for p in curve) / sum(times)
    run.folder.check_current(attempt_no)
    return run.finish(
        counts=result.counts,
        decisions=result.decisions,
        metrics={
            "train/first_loss_nats": curve[0]["loss"],
            "train/last_loss_nats": sum(p["loss"] for p in curve[-10:]) / len(curve[-10:]),
            "train/step_s": times[len(times) // 2],
            "train/peak_bytes": result.peak_bytes,
            "train/tokens_per_s": tokens_per_s,
        }
        | _best_of(found)
        | _reported((result.choice or {}).get("report", {}))
        | utilization(recipe, result.gpu_name, result.flops_per_token, tokens_per_s),
        outputs={"model": "model", "curve": CURVE, "rejects": "rejects"}
        | ({"adapter": "adapter"} if recipe.save_adapter else {}),
        written=result.written | uploaded_sums(run.folder.store),
    )


def _best_of(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the least loss and the highest score of all checkpoints that were evaluated."""
    losses = [point["loss"] for point in evaluated if "loss" in point]
    scores = [point["score"] for point in evaluated if "score" in point]
    return ({"eval/best_loss_nats": min(losses)} if losses else {}) | (
        {"eval/best_score_fraction": max(scores)} if scores else {}
    )


def _reported(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"report/{name}/{figure}": value
        for name, figures in table.items()
        for figure, value in figures.items()
    }
