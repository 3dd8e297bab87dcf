"""Decide which samples stay: an exact global cut over sidecar scores, written as a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime, strategy
from consomme.curate.keep import Edge, HasEdges, KeepPolicy
from consomme.curate.noise_metrics import auc, auc_by_kind, noise_share
from consomme.curate.policies import KEEP_POLICIES
from consomme.pipelines.beside import Runs
from consomme.pipelines.copying import CopyStage
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_view
from consomme.pipelines.runs import begin
from consomme.pipelines.score_walk import ScoreWalk
from consomme.pipelines.session import num_cpus, ray_session
from consomme.storage.ledger import RunFolder
from consomme.storage.plan import pack_rows
from consomme.storage.sidecar import ID_HASH
from consomme.storage.view import View

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class FilterRecipe:
    """A view of the samples a policy keeps."""

    name: str
    """Name of the run."""

    scores: str
    """Folder of a finished score run, or tag run: its samples are chosen from."""

    beside: dict[str, str] = field(default_factory=dict)
    """Folders of more score and tag runs of the same data with the same `unit_rows`, by a name for
    each: `tags.object` is the column `object` of the run `tags`. A sample that was rejected there
    has no such number, and the empty text."""

    views: dict[str, str] = field(default_factory=dict)
    """Folders of finished filter and dedup runs, by a name for each: the column of that name is 1
    where the sample is in the view, else 0."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    keep: dict[str, Any] = strategy("consomme.curate.policies:KEEP_POLICIES")
    """Which samples stay; see consomme/curate/policies.py."""

    materialize: bool = False
    """Also copy the kept samples into new shards, below `shards/` of the run, names and bytes as
    they came. Later stages do not need it; other tools do."""

    file_format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of these shards."""

    num_actors: int | None = runtime(None)
    """Most copying actors; None takes one per CPU."""

    noise_label: str | None = None
    """Column with the true kind of noise (`clean` means none), to measure the filter by."""

    def __post_init__(self) -> None:
        """Check the names of runs."""
        runs_of(self).check()


def runs_of(recipe: FilterRecipe) -> Runs:
    """Return the runs that a recipe reads."""
    return Runs(scores=recipe.scores, beside=recipe.beside, views=recipe.views)


def run(recipe: FilterRecipe) -> Manifest:
    """Make the view, and measure it where the truth is known."""
    runs = runs_of(recipe)
    attempt = begin("filter", recipe, parents=runs.urls)
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    policy = KEEP_POLICIES.build(recipe.keep, "keep")
    measured = [*MEASURED, recipe.noise_label] if recipe.noise_label else []
    with ScoreWalk(runs, [*policy.columns, *measured]) as walk:
        num_rows = walk.num_rows
        decided = decide(policy, walk)
        decisions = dict(decided.told)
        view, mask_N = _view(walk, decided.mask)
        if not view.num_samples:
            raise DataError(
                f"keep: {recipe.keep} keeps none of {walk.num_rows} samples; raise the fraction"
            )
        metrics: dict[str, float] = {}
        if recipe.noise_label:
            metrics, told = _measure(walk, recipe.noise_label, mask_N)
            decisions |= told
    path = view.save(attempt.folder)
    outputs = {"view": path}
    if recipe.materialize:
        _copy(recipe, attempt.folder, view)
        outputs["shards"] = "shards"
    return attempt.finish(
        counts={"samples": num_rows, "kept": view.num_samples},
        decisions=decisions,
        metrics=metrics,
        outputs=outputs,
    )


MEASURED = ("perplexity", "image_gain")
"""What is compared with the truth, where it is known."""


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a policy has decided about all samples."""

    mask: Callable[..., NDArray[np.bool_]]
    """Says for columns and hashes of a part which of its samples stay; asked once, in order."""

    told: dict[str, Any]
    """What the manifest says."""

    edges: tuple[Edge, ...] = ()
    """Where orders of samples were cut."""


def decide(policy: KeepPolicy, walk: ScoreWalk) -> Decided:
    """Let a policy decide, in walks if it can."""
    if hasattr(policy, "decide"):
        decision = policy.decide(walk.chunks)
        edges = decision.edges() if isinstance(decision, HasEdges) else ()
        return Decided(mask=decision.mask, told=decision.describe(), edges=edges)
    # A policy that only knows arrays gets them all.
    scores = {name: walk.whole(name) for name in policy.columns}
    kept = policy(scores, walk.whole(ID_HASH))
    told = {
        "cut": kept.cut,
        "tie_count": kept.tie_count,
        "num_scored": kept.num_scored,
        "num_missing": kept.num_missing,
    }
    rest = kept.mask_N

    def mask(_: object, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        nonlocal rest
        part, rest = rest[: len(hash_N)], rest[len(hash_N) :]
        return part

    return Decided(mask=mask, told=told)


def _view(
    walk: ScoreWalk, mask: Callable[..., NDArray[np.bool_]]
) -> tuple[View, NDArray[np.bool_]]:
    """Walk once more and write down what stays, unit by unit."""
    entries = []
    mask_N = np.zeros(walk.num_rows, dtype=bool)
    at = 0
    for some, columns, hash_N in walk.parts():
        part_N = mask(columns, hash_N)
        mask_N[at : at + len(part_N)] = part_N
        for unit, rows in walk.kept_rows(some, part_N, at):
            entries.append((unit, pack_rows(unit, rows)))
        at += len(part_N)
    return View(entries=tuple(entries)), mask_N


def _measure(
    walk: ScoreWalk, label: str, mask_N: NDArray[np.bool_]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare scores and choice with the truth."""
    scores = {name: walk.whole(name) for name in MEASURED}
    kinds = [kind or CLEAN for kind in walk.whole(label)]
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
