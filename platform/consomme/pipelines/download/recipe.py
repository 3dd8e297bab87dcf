"""What a recipe of `download` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from consomme.base.schema import runtime
from consomme.storage.fetch import FetchPolicy


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
