"""A unit: a range of rows of one shard; it is retried, resumed and committed as a whole."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from consomme.base.sample import Reject, Sample
from consomme.storage.shards import Shard

MAX_UNIT_ROWS = 1024


MAX_UNIT_BYTES = 128 * 2**20


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A contiguous range of rows of one shard."""

    unit_id: str
    """Safe in a file name, unique in a run, and the same on every machine."""

    source: str
    """Name of the data set, as the recipe gives it."""

    shard: str
    """URL of the shard."""

    start: int
    """First row in the shard, from 0."""

    count: int
    """Rows, good and bad."""

    num_bytes: int
    """Bytes of the range; for Parquet an estimate, unpacked."""

    offset: int = 0
    """Where in the shard the range begins; 0 for Parquet, which is reached by rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**values)


ReadUnit = Callable[[Unit], tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]]
"""Reads one unit: samples and rejects, each with its row."""


def unit_name(shard: Shard, start: int) -> str:
    """Name the unit of a shard that begins at a row."""
    path = shard.url.rpartition("/")[2]
    named = f"{shard.source}\t{shard.name}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(named).hexdigest()[:8]
    base_name = re.sub(r"[^A-Za-z0-9_-]+", "_", path.rpartition(".")[0] or path)[:60]
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.source)[:30]
    return f"{label}-{base_name}-{digest}-{start:09d}"
