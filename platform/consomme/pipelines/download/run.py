"""Fetch the pictures of URL lists and write shards, before any other stage.

What the web gives today it may not give tomorrow, so everything later reads shards, never URLs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from consomme.base.manifest import Manifest
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards
from consomme.execution.rejects import check_rejects
from consomme.execution.runs import Run, folders_of, once
from consomme.execution.session import num_cpus, ray_session
from consomme.pipelines.download.recipe import DownloadRecipe
from consomme.pipelines.download.stage import FetchStage
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.patterns import LIST_SUFFIXES
from consomme.storage.shards import Shard
from consomme.storage.url_lists import plan_urls, read_urls
from consomme.storage.writers import write_card


def run(recipe: DownloadRecipe) -> Manifest:
    """Fetch every URL once; running again fetches what is missing."""
    return once(open_run, recipe, _download)


def open_run(recipe: DownloadRecipe) -> Run[Sequence[Shard]]:
    """Resolve the URL lists that the recipe reads; writes nothing."""
    shards = find_data(recipe.inputs, recipe.source, recipe.sources, LIST_SUFFIXES)
    inputs = data_fingerprints(shards, recipe.root, image_root=recipe.reading.image_root)
    return Run.open("download", recipe, shards, inputs=inputs, reads=folders_of(shards))


def _download(run: Run[Sequence[Shard]]) -> Manifest:
    recipe, folder, shards = run.recipe, run.folder, run.resolved
    with ray_session():
        job = Job(
            name="download",
            plan=plan_shards(folder, shards, recipe.unit_rows, plan_urls, reading=recipe.reading),
            folder=folder,
            kind="fetched",
            stage=partial(FetchStage, recipe),
            pool=ActorPool(max_actors=recipe.num_actors or num_cpus(), cpus=0.5),
            max_reject_fraction=recipe.max_reject_fraction,
            reading=recipe.reading,
            read=read_urls,
        )
        run_job(job)
    counts = folder.total_counts()
    check_rejects(counts, recipe.max_reject_fraction, folder.url, recipe.reading, len(shards))
    write_card(folder, recipe.name, recipe.file_format)
    return run.finish(
        counts=counts,
        metrics={"download/fetched_bytes": folder.total_sums().get("bytes", 0.0)},
        outputs={"shards": "shards", "rejects": "rejects"},
    )
