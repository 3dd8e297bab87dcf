"""The recipe of `download`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import added, located, runtime
from consomme.storage.fetch import FetchPolicy
from consomme.storage.options import StorageOptions
from consomme.storage.reading import Reading
from consomme.storage.shards import input_problems


@dataclass(frozen=True, kw_only=True)
class DownloadRecipe(Checked):
    """Shards from lists of URLs."""

    name: str
    """Name of the run."""

    inputs: tuple[str, ...] = located(())
    """Lists of URLs with captions: Parquet, CSV, TSV, JSON lines, JSON arrays, COCO annotations, or
    `.txt` with a URL on each line; also in gzip or zstd. Columns have common names, or those that
    `reading.columns` gives, as in `{url: link, caption: text_de}`; all others become metadata."""

    source: str = "data"
    """Name of the data set in `inputs`."""

    sources: dict[str, list[str]] = located({})
    """More data sets: name -> inputs."""

    reading: Reading = added(Reading())
    """How the records of the inputs become samples: names of columns, where images lie, lists of
    captions, expected rejects."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    """Limits and etiquette of the downloader."""

    file_format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of the shards."""

    unit_rows: PositiveInt = 1000
    """URLs per shard."""

    max_reject_fraction: Fraction = runtime(0.5)
    """The run fails if more than this share of the URLs is rejected; old lists have many dead
    URLs."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of actors; None: one per CPU. Limits per host apply to each actor."""

    @rule
    def _inputs(self) -> Iterator[str]:
        yield from input_problems(self.inputs, self.source, self.sources)
