"""Fetch the pictures of URL lists and write shards; a stage of its own, done before anything else.

What the web gives today it may not give tomorrow, so everything later reads shards, never URLs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from consomme.base.manifest import Manifest
from consomme.base.sample import Reject
from consomme.base.schema import runtime
from consomme.pipelines.copying import FORMATS
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards
from consomme.pipelines.runs import begin, check_rejects, folders_of
from consomme.pipelines.session import num_cpus, ray_session
from consomme.pipelines.stage import BytesStage, Item, Outcome, reject_of
from consomme.storage.fetch import Fetcher, FetchPolicy, FetchProblem
from consomme.storage.ledger import SAMPLES
from consomme.storage.readers.url_list import plan_urls, read_urls
from consomme.storage.shards import find_shards, shards_fingerprint
from consomme.vision.decode import DecodeProblem, decode


@dataclass(frozen=True, kw_only=True)
class DownloadRecipe:
    """Shards made of URL lists."""

    name: str
    """Name of the run."""

    inputs: tuple[str, ...] = ()
    """Parquet files with columns `url` and `caption`; further columns become metadata."""

    source: str = "data"
    """Name of the data set behind `inputs`."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    """How to behave on the web."""

    file_format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of the shards."""

    unit_rows: int = 1000
    """URLs per shard."""

    max_reject_fraction: float = runtime(0.5)
    """More rejects than this share fail the run; much of an old list is gone."""

    num_actors: int | None = runtime(None)
    """Most workers; None takes one per CPU. Limits per host hold for each of them."""


class FetchStage(BytesStage):
    """Fetch the pictures of one unit, look whether they are pictures, and write a shard."""

    def __init__(self, policy: FetchPolicy, file_format: str) -> None:
        """Begin with no robots.txt known."""
        self.fetcher = Fetcher(policy)
        self.suffix, self.pack = FORMATS[file_format]

    def work(self, samples: Sequence[Item]) -> Outcome:
        """Do one unit."""
        results = self.fetcher.fetch([item.sample.image_name for item in samples])
        rejects: list[tuple[int, Reject]] = []
        kept = []
        for item, result in zip(samples, results, strict=True):
            if isinstance(result, FetchProblem):
                reject = reject_of(item.sample, result.reason, result.detail)
            elif isinstance(image := decode(result.data), DecodeProblem):
                detail = f"{result.content_type or 'no type'}: {image.reason}, {image.detail}"
                reject = reject_of(item.sample, "url_not_image", detail)
            else:
                kept.append((item, result))
                continue
            rejects.append((item.row, reject))
        shard = [
            replace(item.sample, image=result.data, image_name=_member(item.sample.sample_id))
            for item, result in kept
        ]
        sums = {"bytes": float(sum(len(result.data) for _, result in kept))}
        digests = [hashlib.sha256(result.data).hexdigest() for _, result in kept]
        table = pa.table(
            {
                "row": pa.array([item.row for item, _ in kept], pa.int32()),
                "sample_id": pa.array([item.sample.sample_id for item, _ in kept], pa.string()),
                "url": pa.array([item.sample.image_name for item, _ in kept], pa.string()),
                "final_url": pa.array([result.url for _, result in kept], pa.string()),
                "sha256": pa.array(digests, pa.string()),
            }
        )
        files = [(SAMPLES, self.suffix, self.pack(shard))] if shard else []
        return Outcome(table=table, rejects=rejects, sums=sums, files=files)


def run(recipe: DownloadRecipe) -> Manifest:
    """Fetch every URL once; running again fetches what is missing."""
    shards = find_shards(recipe.inputs, recipe.source, recipe.sources)
    inputs = {"data": shards_fingerprint(shards)}
    attempt = begin("download", recipe, inputs=inputs, reads=folders_of(shards))
    folder = attempt.folder
    if folder.is_done:
        return folder.manifest()
    with ray_session():
        run_units(
            plan_shards(folder, shards, recipe.unit_rows, plan_urls),
            folder,
            kind="fetched",
            stage=FetchStage,
            stage_options={"policy": recipe.fetch, "file_format": recipe.file_format},
            what="download",
            pool=Pool(max_actors=recipe.num_actors or num_cpus(), cpus=0.5),
            max_reject_fraction=recipe.max_reject_fraction,
            read=read_urls,
        )
    counts = folder.total_counts()
    check_rejects(counts, recipe.max_reject_fraction, folder.url)
    return attempt.finish(
        counts=counts,
        metrics={"download/fetched_bytes": folder.total_sums().get("bytes", 0.0)},
        outputs={"shards": "shards", "rejects": "rejects"},
    )


def _member(sample_id: str) -> str:
    """Name the picture; `jpg` is only a name, readers go by content."""
    return re.sub(r"[^A-Za-z0-9_/-]+", "_", sample_id) + ".jpg"
