"""The stage of `download`: fetch the pictures of one unit and write a shard."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from consomme.base.sample import ImageFile, Reject
from consomme.execution.stage import BytesStage, Outcome, UnitSample, reject_of
from consomme.storage.fetch import Fetcher, FetchProblem
from consomme.storage.ledger.run_folder import SAMPLES
from consomme.storage.writers import FORMATS, shard_fields
from consomme.vision.decode import DecodeProblem, decode

if TYPE_CHECKING:
    from consomme.pipelines.download.recipe import DownloadRecipe


class FetchStage(BytesStage):
    """Fetch the pictures of one unit, check that they can be decoded, and write a shard."""

    def __init__(self, recipe: DownloadRecipe) -> None:
        """Start with no robots.txt known."""
        self.fetcher = Fetcher(recipe.fetch)
        self.suffix, self.pack = FORMATS[recipe.file_format]

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        """Fetch one unit."""
        # Each caption of a picture is a sample, and the picture is fetched once.
        urls = list(dict.fromkeys(item.sample.name for item in samples))
        by_url = dict(zip(urls, self.fetcher.fetch(urls), strict=True))
        results = [by_url[item.sample.name] for item in samples]
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
            replace(
                item.sample,
                images=(ImageFile(data=result.data, name=_member(item.sample.sample_id)),),
            )
            for item, result in kept
        ]
        sums = {"bytes": float(sum(len(result.data) for _, result in kept))}
        sums |= shard_fields(shard, self.suffix) if shard else {}
        digests = [hashlib.sha256(result.data).hexdigest() for _, result in kept]
        table = pa.table(
            {
                "row": pa.array([item.row for item, _ in kept], pa.int32()),
                "sample_id": pa.array([item.sample.sample_id for item, _ in kept], pa.string()),
                "url": pa.array([item.sample.name for item, _ in kept], pa.string()),
                "final_url": pa.array([result.url for _, result in kept], pa.string()),
                "sha256": pa.array(digests, pa.string()),
            }
        )
        files = [(SAMPLES, self.suffix, self.pack(shard))] if shard else []
        return Outcome(table=table, rejects=rejects, sums=sums, files=files)


def _member(sample_id: str) -> str:
    """Name the picture; readers detect the format by content, whatever the suffix."""
    return re.sub(r"[^A-Za-z0-9_/-]+", "_", sample_id) + ".jpg"
