"""Decide which samples stay: an exact global cut over sidecar scores, written as a view."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime, strategy
from consomme.curate.keep import KEEP_POLICIES, hash_ids
from consomme.curate.noise_metrics import auc, auc_by_kind, noise_share
from consomme.pipelines.copying import CopyStage
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_view
from consomme.pipelines.runs import begin
from consomme.pipelines.session import num_cpus, ray_session
from consomme.storage.ledger import RunFolder
from consomme.storage.sidecar import read_columns
from consomme.storage.view import View

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class FilterRecipe:
    """A view of the samples a policy keeps."""

    name: str
    """Name of the run."""

    scores: str
    """Folder of a finished score run."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    keep: dict[str, Any] = strategy("consomme.curate.keep:KEEP_POLICIES")
    """Which samples stay; see consomme/curate/keep.py."""

    materialize: bool = False
    """Also copy the kept samples into new shards, below `shards/` of the run, names and bytes as
    they came. Later stages do not need it; other tools do."""

    file_format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of these shards."""

    num_actors: int | None = runtime(None)
    """Most copying actors; None takes one per CPU."""

    noise_label: str | None = None
    """Column with the true kind of noise (`clean` means none), to measure the filter by."""


def run(recipe: FilterRecipe) -> Manifest:
    """Make the view, and measure it where the truth is known."""
    attempt = begin("filter", recipe, parents=[recipe.scores])
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    policy = KEEP_POLICIES.build(recipe.keep, "keep")
    names = [*dict.fromkeys([*policy.columns, "perplexity", "image_gain"])]
    labels = [recipe.noise_label] if recipe.noise_label else []
    table = read_columns(recipe.scores, [*names, *labels])
    scores = {name: table[name].to_numpy(zero_copy_only=False) for name in names}
    kept = policy(scores, hash_ids(table["sample_id"].to_pylist()))
    if not kept.mask_N.any():
        raise DataError(
            f"keep: {recipe.keep} keeps none of {table.num_rows} samples; raise the fraction"
        )
    rows: dict[str, list[int]] = defaultdict(list)
    unit_ids, numbers = table["unit_id"].to_pylist(), table["row"].to_pylist()
    for index in np.flatnonzero(kept.mask_N):
        rows[unit_ids[index]].append(numbers[index])
    units = [record.unit for record in RunFolder.at(recipe.scores).iter_commits()]
    view = View.from_rows(units, rows)
    path = view.save(attempt.folder)
    metrics: dict[str, float] = {}
    decisions: dict[str, Any] = {
        "cut": kept.cut,
        "tie_count": kept.tie_count,
        "num_missing": kept.num_missing,
    }
    if recipe.noise_label:
        kinds = [kind or CLEAN for kind in table[recipe.noise_label].to_pylist()]
        is_noise = np.array([kind != CLEAN for kind in kinds])
        damage = ["" if kind == CLEAN else kind for kind in kinds]
        share = noise_share(kept.mask_N, is_noise)
        metrics = {
            "filter/noise_auc_perplexity_fraction": auc(scores["perplexity"], is_noise),
            "filter/noise_auc_image_gain_fraction": auc(-scores["image_gain"], is_noise),
            "filter/noise_kept_fraction": share.kept_fraction,
            "filter/noise_dropped_fraction": share.dropped_fraction,
        }
        decisions["auc_by_kind"] = {
            "perplexity": auc_by_kind(scores["perplexity"], damage),
            "image_gain": auc_by_kind(-scores["image_gain"], damage),
        }
        decisions["kept_by_kind"] = {
            kind: [
                int(sum(k == kind and m for k, m in zip(kinds, kept.mask_N, strict=True))),
                kinds.count(kind),
            ]
            for kind in sorted(set(kinds))
        }
    outputs = {"view": path}
    if recipe.materialize:
        _copy(recipe, attempt.folder, view)
        outputs["shards"] = "shards"
    return attempt.finish(
        counts={"samples": table.num_rows, "kept": view.num_samples},
        decisions=decisions,
        metrics=metrics,
        outputs=outputs,
    )


def _copy(recipe: FilterRecipe, folder: RunFolder, view: View) -> None:
    """Copy what the view keeps, each unit into a shard of its own."""
    with ray_session():
        run_units(
            plan_view(folder, view),
            folder,
            kind="rows",
            stage=CopyStage,
            stage_options={"file_format": recipe.file_format},
            what="copy",
            pool=Pool(max_actors=recipe.num_actors or num_cpus(), cpus=0.5),
        )
