"""Decide which samples stay: an exact global cut over sidecar scores, written as a view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from consomme.pipelines.filter.missing import MissingValues
from consomme.pipelines.filter.recipe import FilterRecipe, runs_of
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import pack_rows
from consomme.storage.view import View
from consomme.storage.writers import write_card


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
        view, mask_N, missing = _view(store, decided.mask, policy.columns)
        if not view.num_samples:
            raise DataError(
                f"keep: {recipe.keep} keeps none of {store.num_rows} samples; raise the fraction"
                f"{'. ' if missing.counts else ''}{missing.text}"
            )
        if missing.counts:
            decisions["missing"] = {name: list(pair) for name, pair in missing.counts.items()}
            decisions["table"] = missing.table
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


MEASURED = {"perplexity": 1, "image_gain": -1}
"""Scores that are compared with the truth, if it is known; -1: low values are suspicious."""


def _view(
    store: ColumnStore, mask: Callable[..., NDArray[np.bool_]], names: Sequence[str]
) -> tuple[View, NDArray[np.bool_], MissingValues]:
    """Make one more pass: record the kept rows of each unit, and count missing values."""
    entries = []
    missing = MissingValues()
    mask_N = np.zeros(store.num_rows, dtype=bool)
    at = 0
    for group, columns, hash_N in store.parts():
        part_N = mask(columns, hash_N)
        mask_N[at : at + len(part_N)] = part_N
        missing.add({name: columns[name] for name in names}, part_N)
        for unit, rows in store.kept_rows(group, part_N, at):
            entries.append((unit, pack_rows(unit, rows)))
        at += len(part_N)
    return View(entries=tuple(entries)), mask_N, missing


def _measure(
    store: ColumnStore, label: str, mask_N: NDArray[np.bool_]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the scores and the decision with the truth; scores only where a sample has one."""
    kinds = [kind or CLEAN for kind in store.whole(label)]
    is_noise = np.array([kind != CLEAN for kind in kinds])
    damage = np.array(["" if kind == CLEAN else kind for kind in kinds])
    share = noise_share(mask_N, is_noise)
    metrics: dict[str, float] = {}
    by_kind: dict[str, dict[str, float]] = {}
    for name, sign in MEASURED.items():
        value_N = sign * store.whole(name)
        scored_N = ~np.isnan(value_N)
        metrics[f"filter/noise_auc_{name}_fraction"] = auc(value_N[scored_N], is_noise[scored_N])
        by_kind[name] = auc_by_kind(value_N[scored_N], damage[scored_N].tolist())
    metrics |= {
        "filter/noise_kept_fraction": share.kept_fraction,
        "filter/noise_dropped_fraction": share.dropped_fraction,
    }
    return metrics, {
        "auc_by_kind": by_kind,
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
    write_card(folder, recipe.name, recipe.file_format)
