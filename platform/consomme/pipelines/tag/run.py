"""Compute columns of one or more taggers, which a filter joins to scores.

The taggers of one recipe share their work: a unit is read once, its pictures are decoded once, and
only if a tagger needs them, and a model that several taggers name is loaded once per actor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from consomme.base.manifest import Manifest
from consomme.curate.tag.registry import TAGGERS
from consomme.curate.tag.tagger import Tagger
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards
from consomme.execution.rejects import check_rejects
from consomme.execution.runs import Run, folders_of, once
from consomme.execution.session import num_cpus, ray_session
from consomme.pipelines.tag.recipe import TagRecipe
from consomme.pipelines.tag.stage import TAGS, PictureTagStage, TextTagStage
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.shards import Shard

_SHOWN = 12
"""Values per column in the final table, the most frequent ones."""


@dataclass(frozen=True, kw_only=True)
class TagInputs:
    """The resolved inputs of a tag recipe."""

    shards: Sequence[Shard]
    taggers: Sequence[Tagger]
    models: Mapping[str, str]
    """Where any node finds each model that the taggers name; see `portable_path`."""


def run(recipe: TagRecipe) -> Manifest:
    """Tag every sample of the inputs exactly once; running again does what is missing."""
    return once(open_run, recipe, _tag)


def open_run(recipe: TagRecipe) -> Run[TagInputs]:
    """Resolve the inputs of the recipe; writes nothing."""
    from consomme.storage.model_folder import model_hash, portable_path

    taggers = [TAGGERS.build(node, "taggers") for node in recipe.taggers]
    shards = find_data(recipe.inputs, recipe.source, recipe.sources)
    models = {tagger.model: portable_path(tagger.model) for tagger in taggers if tagger.model}
    inputs = data_fingerprints(shards, recipe.root, image_root=recipe.reading.image_root)
    inputs |= {
        f"taggers[{k}].model": model_hash(models[tagger.model])
        for k, tagger in enumerate(taggers)
        if tagger.model
    }
    inputs |= {
        f"tagger {node['name']}": tagger.data_version
        for node, tagger in zip(recipe.taggers, taggers, strict=True)
        if tagger.data_version
    }
    return Run.open(
        "tag",
        recipe,
        TagInputs(shards=shards, taggers=taggers, models=models),
        inputs=inputs,
        reads=[*folders_of(shards), *models.values()],
    )


def _tag(run: Run[TagInputs]) -> Manifest:
    recipe, taggers, folders = run.recipe, run.resolved.taggers, run.resolved.models
    sees = any(tagger.needs_pictures for tagger in taggers)
    with ray_session():
        job = Job(
            name="tag",
            plan=plan_shards(
                run.folder, run.resolved.shards, recipe.unit_rows, reading=recipe.reading
            ),
            folder=run.folder,
            kind=TAGS,
            stage=partial(
                PictureTagStage if sees else TextTagStage,
                recipe,
                folders,
                hashes={
                    tagger.model: run.inputs[f"taggers[{k}].model"]
                    for k, tagger in enumerate(taggers)
                    if tagger.model
                },
                run_folder=run.folder,
            ),
            pool=_pool(recipe, asks_models=bool(folders)),
            max_reject_fraction=recipe.max_reject_fraction,
            reading=recipe.reading,
        )
        run_job(job)
    counts = run.folder.total_counts()
    check_rejects(
        counts, recipe.max_reject_fraction, run.folder.url, recipe.reading, len(run.resolved.shards)
    )
    return run.finish(
        counts=counts,
        decisions=_table(taggers, counts),
        outputs={"tags": "data", "rejects": "rejects"},
    )


def _table(taggers: Sequence[Tagger], counts: Mapping[str, int]) -> dict[str, Any]:
    """Make the table of the most frequent values of each text column."""
    rows: list[list[Any]] = []
    for column in [c for t in taggers for c, kind in t.columns.items() if kind == pa.string()]:
        found = {
            name.removeprefix(f"{column}/"): number
            for name, number in counts.items()
            if name.startswith(f"{column}/")
        }
        ranked = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
        rows += [[column, value or "(none)", f"{number:,}"] for value, number in ranked[:_SHOWN]]
        rest = sum(number for _, number in ranked[_SHOWN:])
        if rest:
            rows.append([column, f"{len(ranked) - _SHOWN} more values", f"{rest:,}"])
    if not rows:
        return {}
    return {
        "table": {
            "title": "What was found",
            "columns": ["column", "value", "samples"],
            "rows": rows,
        }
    }


def _pool(recipe: TagRecipe, *, asks_models: bool) -> ActorPool:
    """One actor per GPU if taggers run models and there are GPUs; else one per CPU."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0)) if asks_models else 0
    return ActorPool(
        max_actors=recipe.num_actors or gpus or num_cpus(),
        min_actors=recipe.min_actors,
        num_readers=recipe.num_readers,
        cpus=0.8,
        gpus=1.0 if gpus else 0.0,
    )
