"""Decide which samples stay: an exact global cut over sidecar scores, written as a view."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.curate.keep.noise_metrics import auc, auc_by_kind, noise_share
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.datasets.web_noise import CLEAN
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_view
from consomme.execution.runs import Run, once
from consomme.execution.session import num_cpus, ray_session
from consomme.pipelines.filter.columns import ColumnStore
from consomme.pipelines.filter.copying import CopyStage
from consomme.pipelines.filter.decide import decide
from consomme.pipelines.filter.inputs import InputRuns
from consomme.pipelines.filter.recipe import FilterRecipe, runs_of
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import pack_rows
from consomme.storage.view import View


def run(recipe: FilterRecipe) -> Manifest:
    """Write the view, and measure it if the truth is known."""
    return once(open_run, recipe, _filter)


def open_run(recipe: FilterRecipe) -> Run[InputRuns]:
    """Resolve the runs that the recipe reads; writes nothing."""
    runs = runs_of(recipe)
    # Scores are read from the runs alone; only copies are made from the shards.
    data_of = [runs.scores] if recipe.materialize else []
    return Run.open("filter", recipe, runs, runs=runs.by_key, data_of=data_of)


def _filter(run: Run[InputRuns]) -> Manifest:
    recipe, runs = run.recipe, run.resolved
    policy = KEEP_POLICIES.build(recipe.keep, "keep")
    measured = [*MEASURED, recipe.noise_label] if recipe.noise_label else []
    with ColumnStore(runs, [*policy.columns, *measured]) as store:
        num_rows = store.num_rows
        decided = decide(policy, store)
        decisions = dict(decided.stats)
        view, mask_N = _view(store, decided.mask)
        if not view.num_samples:
            raise DataError(
                f"keep: {recipe.keep} keeps none of {store.num_rows} samples; raise the fraction"
            )
        metrics: dict[str, float] = {}
        if recipe.noise_label:
            metrics, stats = _measure(store, recipe.noise_label, mask_N)
            decisions |= stats
    path = view.save(run.folder)
    outputs = {"view": path}
    if recipe.materialize:
        _copy(recipe, run.folder, view)
        outputs["shards"] = "shards"
    return run.finish(
        counts={"samples": num_rows, "kept": view.num_samples},
        decisions=decisions,
        metrics=metrics,
        outputs=outputs,
    )


MEASURED = ("perplexity", "image_gain")
"""Scores that are compared with the truth, if it is known."""


def _view(
    store: ColumnStore, mask: Callable[..., NDArray[np.bool_]]
) -> tuple[View, NDArray[np.bool_]]:
    """Make one more pass and record the kept rows of each unit."""
    entries = []
    mask_N = np.zeros(store.num_rows, dtype=bool)
    at = 0
    for group, columns, hash_N in store.parts():
        part_N = mask(columns, hash_N)
        mask_N[at : at + len(part_N)] = part_N
        for unit, rows in store.kept_rows(group, part_N, at):
            entries.append((unit, pack_rows(unit, rows)))
        at += len(part_N)
    return View(entries=tuple(entries)), mask_N


def _measure(
    store: ColumnStore, label: str, mask_N: NDArray[np.bool_]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the scores and the decision with the truth."""
    scores = {name: store.whole(name) for name in MEASURED}
    kinds = [kind or CLEAN for kind in store.whole(label)]
    is_noise = np.array([kind != CLEAN for kind in kinds])
    damage = ["" if kind == CLEAN else kind for kind in kinds]
    share = noise_share(mask_N, is_noise)
    metrics = {
        "filter/noise_auc_perplexity_fraction": auc(scores["perplexity"], is_noise),
        "filter/noise_auc_image_gain_fraction": auc(-scores["image_gain"], is_noise),
        "filter/noise_kept_fraction": share.kept_fraction,
        "filter/noise_dropped_fraction": share.dropped_fraction,
    }
    return metrics, {
        "auc_by_kind": {
            "perplexity": auc_by_kind(scores["perplexity"], damage),
            "image_gain": auc_by_kind(-scores["image_gain"], damage),
        },
        "kept_by_kind": {
            kind: [
                int(sum(k == kind and m for k, m in zip(kinds, mask_N, strict=True))),
                kinds.count(kind),
            ]
            for kind in sorted(set(kinds))
        },
    }


def _copy(recipe: FilterRecipe, folder: RunFolder, view: View) -> None:
    """Copy the kept samples, each unit into a shard of its own."""
    with ray_session():
        job = Job(
            name="copy",
            plan=plan_view(folder, view),
            folder=folder,
            kind="rows",
            stage=partial(CopyStage, recipe),
            pool=ActorPool(max_actors=recipe.num_actors or num_cpus(), cpus=0.5),
        )
        run_job(job)
