"""Write the embedded data sets as shards, with labelled web noise if the recipe asks for it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from consomme.base.manifest import Manifest
from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.datasets.web_noise import add_noise
from consomme.execution.runs import Run, once
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.storage.writers import ParquetWriter, WebDatasetWriter


def run(recipe: PrepareRecipe) -> Manifest:
    """Write the shards into the run's `data/`."""
    return once(open_run, recipe, _prepare)


def open_run(recipe: PrepareRecipe) -> Run[None]:
    """Find the run folder; a prepare recipe has no inputs."""
    return Run.open("prepare", recipe, None)


def _prepare(run: Run[None]) -> Manifest:
    recipe = run.recipe
    samples = list(SAMPLE_SOURCES.build(recipe.source)())
    noisy = add_noise(
        samples, fraction=recipe.noise_fraction, seed=recipe.noise_seed, kinds=recipe.noise_kinds
    )
    for position in range(recipe.bad_images):
        at = (position * 97 + 11) % len(noisy)
        cut = noisy[at]
        image, *others = cut.images
        half = replace(image, data=image.data[: len(image.data) // 2])
        noisy[at] = replace(cut, images=(half, *others))
    writer_class = WebDatasetWriter if recipe.format == "webdataset" else ParquetWriter
    writer = writer_class(run.folder.store, "data/shard", max_rows=recipe.rows_per_shard)
    counts: dict[str, int] = {"samples": len(noisy)}
    digest = hashlib.sha256()
    for sample in noisy:
        kind = f"noise/{sample.meta['noise']}"
        counts[kind] = counts.get(kind, 0) + 1
        digest.update(f"{sample.sample_id}\t{sample.caption}\n".encode())
        writer.write(sample)
    files = writer.close()
    writer.write_card(recipe.name)
    return run.finish(
        counts=counts,
        outputs={"data": "data"},
        decisions={"shards": len(files), "sha256": digest.hexdigest()},
        written=writer.sums,
    )
