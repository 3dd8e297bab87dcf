"""The unit: a range of rows of one shard that is retried, resumed and committed as a whole."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from consomme.base.sample import Reject, Sample
from consomme.storage.shards import Shard

MAX_UNIT_ROWS = 1024
"""Default limit of rows per unit."""

MAX_UNIT_BYTES = 128 * 2**20
"""Default limit of bytes per unit."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A contiguous range of rows of one shard."""

    unit_id: str
    """Unique in a run, safe in a file name, and the same on every machine."""

    source: str
    """Name of the data set in the recipe."""

    shard: str
    """URL of the shard."""

    start: int
    """First row in the shard, from 0."""

    count: int
    """Number of rows, including those that will be rejected."""

    num_bytes: int
    """Size of the range in bytes; for Parquet an estimate of the uncompressed size."""

    offset: int = 0
    """Byte offset of the range in the shard; 0 for Parquet, which is addressed by row."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a unit from the output of `to_dict`."""
        return cls(**values)


ReadUnit = Callable[[Unit], tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]]
"""Function that reads one unit: its samples and its rejects, each with its row."""


def unit_name(shard: Shard, start: int) -> str:
    """Return the id of the unit of a shard that begins at row `start`."""
    file_name = shard.url.rpartition("/")[2]
    identity = f"{shard.source}\t{shard.name}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(identity).hexdigest()[:8]
    base_name = re.sub(r"[^A-Za-z0-9_-]+", "_", file_name.rpartition(".")[0] or file_name)[:60]
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.source)[:30]
    return f"{label}-{base_name}-{digest}-{start:09d}"
