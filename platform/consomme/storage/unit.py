"""The unit: a range of rows of one shard that is retried, resumed and committed as a whole."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from consomme.base.sample import Reject, Sample
from consomme.storage.reading import Reading
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

    reading: str = ""
    """How its records become samples: `Reading.for_units`; empty without options."""

    layout: str = ""
    """What the shard is, if that is not what its name says: see `consomme.storage.layouts`."""

    repeats: str = ""
    """Records whose ids occurred earlier in the shard: see `consomme.storage.repeats`."""

    num_records: int = 0
    """Records that its rows come from, if a record may give several rows; 0: one each."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; optional ones only where they are set."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in OPTIONAL_FIELDS or v}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a unit from the output of `to_dict`, or from a row of a table of units."""
        return cls(**{k: v for k, v in values.items() if k not in OPTIONAL_FIELDS or v is not None})


OPTIONAL_FIELDS = ("reading", "layout", "repeats", "num_records")
"""Fields that most units do without; files have them only where they are set."""

UNIT_FIELDS = tuple(field.name for field in dataclasses.fields(Unit))
"""Names of all fields."""


def set_fields(units: Iterable[Unit]) -> list[str]:
    """List the fields that a table of some units has as columns."""
    optional = dict.fromkeys(OPTIONAL_FIELDS, False)
    for unit in units:
        for name in OPTIONAL_FIELDS:
            optional[name] = optional[name] or bool(getattr(unit, name))
    return [name for name in UNIT_FIELDS if optional.get(name, True)]


ReadUnit = Callable[[Unit], tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]]
"""Function that reads one unit: its samples and its rejects, each with its row."""


def unit_name(shard: Shard, start: int, reading: str = "") -> str:
    """Return the id of the unit of a shard that begins at row `start`.

    Args:
        shard: The shard.
        start: First row.
        reading: `Reading.for_units`. Rows that are read in another way are other rows.
    """
    file_name = shard.url.rpartition("/")[2]
    identity = f"{shard.source}\t{shard.name}"
    if options := Reading.identity_of(reading):
        identity += f"\t{options}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    base_name = re.sub(r"[^A-Za-z0-9_-]+", "_", file_name.rpartition(".")[0] or file_name)[:60]
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.source)[:30]
    return f"{label}-{base_name}-{digest}-{start:09d}"
