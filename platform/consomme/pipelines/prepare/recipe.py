"""What a recipe of `prepare` may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.schema import runtime, strategy
from consomme.datasets.web_noise import KINDS


@dataclass(frozen=True, kw_only=True)
class PrepareRecipe:
    """Shards out of the embedded data."""

    name: str
    """Name of the run."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    source: dict[str, Any] = strategy("consomme.datasets.sources:SAMPLE_SOURCES")
    """Which data: `{name: emoji, …}` or `{name: scenes, …}`."""

    noise_fraction: float = 0.0
    """Share of captions to damage as the web does, in [0, 1]; `meta.noise` labels every sample."""

    noise_kinds: tuple[str, ...] = KINDS
    """Which kinds of damage."""

    noise_seed: int = 0
    """Another seed, other damage."""

    bad_images: int = 0
    """How many samples get a truncated picture, to see that each costs one reject."""

    format: Literal["webdataset", "parquet"] = "webdataset"
    """Kind of shard."""

    rows_per_shard: int = 512
    """Samples per shard."""
