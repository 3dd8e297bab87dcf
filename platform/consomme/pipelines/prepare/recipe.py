"""The recipe of `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.bounds import Fraction, NonNegativeInt, PositiveInt
from consomme.base.checked import Checked
from consomme.base.schema import runtime, strategy
from consomme.datasets.web_noise import KINDS
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class PrepareRecipe(Checked):
    """Shards made from the data sets that are included in the package."""

    name: str
    """Name of the run."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    source: dict[str, Any] = strategy("consomme.datasets.sources:SAMPLE_SOURCES")
    """Which data: `{name: emoji, …}` or `{name: scenes, …}`."""

    noise_fraction: Fraction = 0.0
    """Share of captions to corrupt as web data is, in [0, 1]; `meta.noise` labels every sample."""

    noise_kinds: tuple[str, ...] = KINDS
    """Kinds of corruption."""

    noise_seed: int = 0
    """Seed of the corruption."""

    bad_images: NonNegativeInt = 0
    """Number of samples whose image is truncated, to test that each costs exactly one reject."""

    format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of the shards."""

    rows_per_shard: PositiveInt = 512
    """Samples per shard."""
