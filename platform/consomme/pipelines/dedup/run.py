"""Find exact and near copies of pictures, and write a view of the samples that stay.

A run has two parts. Workers hash every picture, unit by unit through the ledger. Then one process
reads the hashes, finds what is of a benchmark that the recipe names, compares the thumbnails of
pictures with near hashes, decides, and writes the view and the groups. Another run can decide anew
on the hashes of an earlier one (`hashes`) without reading a picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from consomme.base.manifest import Manifest
from consomme.evaluate.benchmarks import data_inputs
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards, plan_view
from consomme.execution.rejects import check_rejects
from consomme.execution.runs import Run, folders_of, once
from consomme.execution.session import num_cpus, ray_session
from consomme.pipelines.dedup.against import (
    KnownQuestions,
    against_table,
    find_contaminated,
    tables_of,
    without,
)
from consomme.pipelines.dedup.copies import (
    HASHES,
    distances,
    group_sizes,
    load_hashes,
    save_groups,
    save_view,
)
from consomme.pipelines.dedup.decision import decide_by, describe_best, many_pictures
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.stage import HashStage
from consomme.pipelines.dedup.thumbnails import ThumbnailScratch
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.shards import Shard
from consomme.storage.view import View


def run(recipe: DedupRecipe) -> Manifest:
    """Hash every picture exactly once, then keep the best copy of each."""
    return once(open_run, recipe, _dedup)


def open_run(recipe: DedupRecipe) -> Run[Sequence[Shard]]:
    """Resolve the shards and benchmarks that the recipe reads; writes nothing."""
    has_shards = bool(recipe.inputs or recipe.sources)
    shards = find_data(recipe.inputs, recipe.source, recipe.sources) if has_shards else []
    inputs = (
        data_fingerprints(shards, recipe.root, image_root=recipe.reading.image_root)
        if shards
        else {}
    )
    return Run.open(
        "dedup",
        recipe,
        shards,
        inputs=inputs | data_inputs(recipe.against, "against"),
        runs={"view": recipe.view, "hashes": recipe.hashes, "scores": recipe.scores},
        reads=folders_of(shards),
        data_of=[recipe.view],
    )


def _dedup(run: Run[Sequence[Shard]]) -> Manifest:
    known = KnownQuestions.of(run.recipe)
    if run.recipe.hashes is None:
        _hash(run, known)
    return _decide(run, known)


def _hash(run: Run[Sequence[Shard]], known: KnownQuestions | None) -> None:
    """Hash all units, and look for the texts of benchmarks."""
    recipe, folder, shards = run.recipe, run.folder, run.resolved
    with ray_session():
        if recipe.view:
            plan = plan_view(folder, View.load(recipe.view))
        else:
            plan = plan_shards(folder, shards, recipe.unit_rows, reading=recipe.reading)
        job = Job(
            name="hash",
            plan=plan,
            folder=folder,
            kind=HASHES,
            stage=partial(HashStage, known.index) if known else HashStage,
            pool=ActorPool(
                max_actors=recipe.num_actors or num_cpus(),
                min_actors=recipe.min_actors,
                num_readers=recipe.num_readers,
                cpus=0.8,
            ),
            max_reject_fraction=recipe.max_reject_fraction,
            reading=recipe.reading,
        )
        run_job(job)
    check_rejects(
        folder.total_counts(), recipe.max_reject_fraction, folder.url, recipe.reading, len(shards)
    )


def _decide(run: Run[Sequence[Shard]], known: KnownQuestions | None) -> Manifest:
    """Read the hashes, decide, and write the view and the groups."""
    clock = time.monotonic()
    recipe, folder = run.recipe, run.folder
    source = recipe.hashes or folder.url
    whole = hashed = load_hashes(source)
    contaminated = None
    if known is not None:
        with ThumbnailScratch(source, whole) as scratch:
            contaminated = find_contaminated(recipe, known, whole, tables_of(source), scratch.open)
        hashed = without(whole, contaminated.rows)
    with ThumbnailScratch(source, hashed) as scratch:
        decision = decide_by(recipe, hashed, scratch.open)
    order, duplicates = decision.order_R, decision.duplicates
    is_kept = decision.is_kept_R
    view = save_view(folder, hashed, order[is_kept])
    groups = save_groups(folder, source, hashed, order, duplicates, is_kept)
    counts = decision.counts
    outputs = {"view": view, "groups": groups}
    found: dict[str, Any] = {}
    if contaminated is not None:
        outputs["contaminated"] = contaminated.save(folder)
        counts["contaminated"] = contaminated.num_samples
        counts["samples"] += contaminated.num_samples
        found = {"against": contaminated.by_benchmark, "table": against_table(contaminated)}
    total = counts["samples"]
    return run.finish(
        counts={**folder.total_counts(), **counts},
        decisions={
            "max_distance": recipe.max_distance,
            "max_colour": recipe.max_colour,
            "best": describe_best(recipe, is_plain=hashed.is_plain),
            "num_flat": int(hashed.is_flat_N.sum()),
            "num_unscored": decision.num_unscored,
            "groups_by_size": group_sizes(duplicates),
            "near_by_distance": distances(duplicates),
            "max_difference": round(float(duplicates.difference_N.max(initial=0)), 4),
            **many_pictures(recipe, hashed, decision),
            **found,
        },
        metrics={
            "dedup/kept_fraction": counts["kept"] / total,
            "dedup/exact_fraction": counts["exact"] / total,
            "dedup/near_fraction": counts["near"] / total,
            "dedup/decide_s": round(time.monotonic() - clock, 2),
        },
        outputs=outputs | ({} if recipe.hashes else {"hashes": "data", "rejects": "rejects"}),
    )
