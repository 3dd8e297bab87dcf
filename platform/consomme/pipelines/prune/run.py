"""Remove the layers of a language model that matter least, and measure what is left."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.base.own_modules import module_inputs
from consomme.base.telemetry import Progress
from consomme.evaluate.names import shown_figure
from consomme.execution.runs import Run, folders_of, once
from consomme.pipelines.prune.job import PruneInputs, PruneJob, PruneOutcome
from consomme.pipelines.prune.recipe import PruneRecipe
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.model_folder import model_hash, portable_path
from consomme.storage.stores.open import absolute_url
from consomme.storage.stores.store import join_url

logger = logging.getLogger(__name__)


def run(recipe: PruneRecipe) -> Manifest:
    """Write a model for each number of layers; the chosen one becomes the model of the run."""
    return once(open_run, recipe, _prune)


def open_run(recipe: PruneRecipe) -> Run[PruneInputs]:
    """Resolve the models and the data of a recipe; writes nothing.

    Raises:
        DataError: `protect_run` is no finished train run.
        RecipeError: A benchmark needs a judge.
    """
    from consomme.evaluate.benchmarks import data_inputs
    from consomme.pipelines.evaluate.in_memory import check_needs_no_judge

    guards = [one.benchmark for one in recipe.guards]
    check_needs_no_judge(
        {
            **{f"benchmarks[{k}]": node for k, node in enumerate(recipe.benchmarks)},
            **{f"guards[{k}].benchmark": node for k, node in enumerate(guards)},
        }
    )
    model = portable_path(recipe.model)
    inputs = {"model": model_hash(model), **module_inputs(recipe.modules)}
    inputs |= data_inputs(recipe.benchmarks, "benchmarks") | data_inputs(guards, "guards")
    reads = [model]
    others = {
        "importance.base": recipe.importance.get("base"),
        "diagnostics.revert_to": recipe.diagnostics.revert_to,
        "protect.tuned": (recipe.protect or {}).get("tuned"),
    }
    found = {}
    for key, other in others.items():
        if other is not None:
            found[key] = portable_path(other)
            inputs[key] = model_hash(found[key])
            reads.append(found[key])
    runs: dict[str, str | None] = {}
    for number, source in enumerate(recipe.data):
        name = f"data[{number}]"
        if source.inputs:
            shards = find_data(source.inputs)
            inputs |= data_fingerprints(
                shards, recipe.root, name, image_root=source.reading.image_root
            )
            reads += folders_of(shards)
        runs |= {f"{name}.view": source.view, f"{name}.captions": source.captions}
    data_of = list(dict.fromkeys(runs.values()))
    runs["protect_run"] = recipe.protect_run
    region, depth = _region(recipe)
    resolved = PruneInputs(
        model=model,
        model_hash=inputs["model"],
        base=found.get("importance.base"),
        revert_to=found.get("diagnostics.revert_to"),
        region=region,
        region_depth=depth,
    )
    return Run.open(
        "prune", recipe, resolved, inputs=inputs, runs=runs, reads=reads, data_of=data_of
    )


def _region(recipe: PruneRecipe) -> tuple[tuple[int, ...] | None, int]:
    """Return the layers that a train run selected, and the depth of its model."""
    if recipe.protect_run is None:
        return None, 0
    manifest = load_manifest(absolute_url(recipe.protect_run))
    if manifest.verb != "train":
        raise DataError(
            f"protect_run: found a {manifest.verb} run at {recipe.protect_run}, expected a train"
            " run, whose selected layers stay"
        )
    return tuple(manifest.decisions["layers"]), int(manifest.decisions["num_layers"])


def _prune(run: Run[PruneInputs]) -> Manifest:
    from consomme.execution.session import ray_session

    with ray_session():
        outcome = _on_ray(_job(run))
    for note in dict.fromkeys(outcome.notes):
        logger.warning("prune: %s", note)
    outcome.notes = list(dict.fromkeys(outcome.notes))
    outputs = {"model": "model"}
    if run.recipe.has_several:
        outputs |= {f"removed-{n}": f"removed-{n}/model" for n in run.recipe.counts}
    return run.finish(
        counts={"layers": outcome.num_layers, "removed": outcome.chosen},
        decisions={**outcome.decisions, "table": table_of(outcome.models, outcome.main_figures)},
        metrics=_metrics(outcome),
        outputs=outputs,
        written=outcome.written,
    )


def _job(run: Run[PruneInputs]) -> PruneJob:
    from consomme.evaluate.benchmarks import portable_node
    from consomme.pipelines.prune.samples import calibration_recipe
    from consomme.pipelines.train.context import with_absolute_paths

    recipe: PruneRecipe = run.recipe
    calibration = None
    protect = recipe.protect
    if protect and protect.get("tuned"):
        protect = {**protect, "tuned": portable_path(protect["tuned"])}
    if recipe.data:
        calibration = with_absolute_paths(calibration_recipe(recipe))
    portable = dataclasses.replace(
        recipe,
        protect=protect,
        benchmarks=tuple(map(portable_node, recipe.benchmarks)),
        guards=tuple(
            dataclasses.replace(one, benchmark=portable_node(one.benchmark))
            for one in recipe.guards
        ),
    )
    return PruneJob(
        recipe=portable,
        calibration=calibration,
        inputs=run.resolved,
        folder=RunFolder.at(absolute_url(run.folder.url)),
        cache_url=absolute_url(join_url(recipe.root, "cache")),
    )


def _on_ray(job: PruneJob) -> PruneOutcome:
    """Prune in a Ray task, which has a GPU if the cluster has one."""
    import ray

    from consomme.execution.errors import own_errors
    from consomme.pipelines.prune.task import num_steps, prune_model

    has_gpu = bool(ray.cluster_resources().get("GPU", 0))
    task = ray.remote(prune_model).options(
        num_cpus=1, num_gpus=1 if has_gpu else 0, max_retries=2, num_returns="streaming"
    )
    found: PruneOutcome | None = None
    total = num_steps(job.recipe.counts)
    with own_errors(), Progress(total, "prune", "steps") as progress:
        for made in task.remote(job):
            found = ray.get(made)
            progress.advance(found is None)
    assert found is not None
    return found


def _metrics(outcome: PruneOutcome) -> dict[str, float]:
    found = {}
    for row in outcome.models:
        cost, name = row["cost"], f"prune/{row['n']}"
        found[f"{name}/parameters"] = float(cost["num_parameters"])
        found[f"{name}/weight_bytes"] = float(cost["weight_bytes"])
        if cost["token_s"] is not None:
            found[f"{name}/token_s"] = cost["token_s"]
        if cost["cache_bytes"] is not None:
            found[f"{name}/cache_bytes"] = float(cost["cache_bytes"])
        for benchmark, figures in row["figures"].items():
            for figure, value in figures.items():
                found[f"{name}/{benchmark}/{figure}"] = value
    return found


def table_of(models: list[dict[str, Any]], main_figures: Mapping[str, str]) -> dict[str, Any]:
    """Return the table that is printed at the end."""
    return {
        "title": "what is left",
        "columns": [
            "n", "removed", "parameters", "MB", "ms/token", "cache bytes/token",
            *(f"{name}: {shown_figure(main)}" for name, main in main_figures.items()),
        ],
        "rows": [
            [
                str(row["n"]),
                ", ".join(map(str, row["removed"])) or "–",
                f"{row['cost']['num_parameters']:,}",
                f"{row['cost']['weight_bytes'] / 1e6:.1f}",
                "–" if row["cost"]["token_s"] is None else f"{1000 * row['cost']['token_s']:.2f}",
                "–" if row["cost"]["cache_bytes"] is None else f"{row['cost']['cache_bytes']:,}",
                *(f"{row['figures'][name][main]:.4g}" for name, main in main_figures.items()),
            ]
            for row in models
        ],
    }  # fmt: skip
