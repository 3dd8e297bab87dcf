"""Plans: the units of a run, stored in its folder so that a restart does not read shards again.

A plan consists of Parquet parts with some hundred units each and, where only some rows of a unit
are selected, a bitmap of rows. `plan/plan.json` is written last and marks the plan as complete. One
part at a time is in memory.
"""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.storage.shards import Shard
from consomme.storage.sidecar import table_bytes
from consomme.storage.stores.store import Store, join_url
from consomme.storage.unit import Unit, set_fields
from consomme.storage.unit_columns import unit_columns

_PLAN_FILE = "plan/plan.json"

SHARDS = "plan/shards.parquet"
"""What the shards of a plan were when they were read: source, name, URL, size and version."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit to process, or some of its rows."""

    unit: Unit
    bitmap: bytes | None = None
    """Selected rows: row `r` is bit `r % 8` of byte `r // 8`; None means all."""

    @property
    def rows(self) -> list[int] | None:
        """Selected rows, ascending; None means all."""
        return None if self.bitmap is None else unpack_rows(self.unit, self.bitmap)

    @property
    def num_rows(self) -> int:
        """Number of selected rows."""
        if self.bitmap is None:
            return self.unit.count
        return sum(byte.bit_count() for byte in self.bitmap)


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """One file of a plan."""

    path: str
    num_units: int
    num_rows: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of a run, as a list of parts."""

    parts: tuple[PlanPart, ...]
    num_shards: int

    @property
    def num_units(self) -> int:
        """Total number of units."""
        return sum(part.num_units for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Total number of rows, including those that will be rejected."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes to read, as far as the shards state them."""
        return sum(part.num_bytes for part in self.parts)

    def save(self, store: Store) -> None:
        """Write `plan.json`, which marks the plan as complete."""
        store.write(_PLAN_FILE, json.dumps(dataclasses.asdict(self), indent=1).encode())

    @classmethod
    def load(cls, store: Store) -> "Plan | None":
        """Read the plan of a run; None if there is none or it is incomplete."""
        try:
            content: dict[str, Any] = json.loads(store.read(_PLAN_FILE))
        except FileNotFoundError:
            return None
        parts = tuple(PlanPart(**part) for part in content["parts"])
        return cls(parts=parts, num_shards=content["num_shards"])


def write_part(store: Store, number: int, work: Iterable[Work]) -> PlanPart:
    """Write part `number`; the same work gives the same bytes."""
    items = list(work)
    path = f"plan/part-{number:06d}.parquet"
    table = units_table((item.unit for item in items), [item.bitmap for item in items])
    store.write(path, table_bytes(table))
    return PlanPart(
        path=path,
        num_units=len(items),
        num_rows=sum(item.num_rows for item in items),
        num_bytes=sum(item.unit.num_bytes for item in items),
    )


def read_part(store: Store, path: str, rows: Sequence[int] | None = None) -> Iterator[Work]:
    """Yield the entries of one part in order, or only those at `rows`.

    Raises:
        DataError: The part is missing or damaged.
    """
    table = _read(store, path, None)
    if rows is not None:
        table = table.take(pa.array(rows, pa.int32()))
    for row in table.to_pylist():
        bitmap = row.pop("bitmap")
        yield Work(unit=Unit.from_dict(row), bitmap=bitmap)


def part_unit_ids(store: Store, path: str) -> list[str]:
    """List the unit ids of one part, in order."""
    ids: list[str] = _read(store, path, ["unit_id"])["unit_id"].to_pylist()
    return ids


def save_shards(store: Store, shards: Sequence[Shard], beside: Mapping[str, str]) -> None:
    """Record what the shards of a run are, so that others can tell whether they changed since.

    Args:
        store: The run folder.
        shards: The shards.
        beside: Fingerprint of what lies beside them, by folder.
    """
    columns = {name: [getattr(shard, name) for shard in shards] for name in _SHARD_SCHEMA.names}
    schema = _SHARD_SCHEMA.with_metadata({_BESIDE: json.dumps(dict(beside), sort_keys=True)})
    store.write(SHARDS, table_bytes(pa.table(columns, schema=schema)))


def load_shards(store: Store) -> tuple[list[Shard], dict[str, str]]:
    """Read what `save_shards` wrote: the shards, and what lies beside them by folder.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        table = pq.read_table(io.BytesIO(store.read(SHARDS)))
        beside: dict[str, str] = json.loads((table.schema.metadata or {}).get(_BESIDE, b"{}"))
        return [Shard(**row) for row in table.to_pylist()], beside
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"{join_url(store.url, SHARDS)}: cannot be read ({error}); to see what can be done:"
            f" consomme verify {store.url}"
        ) from error


def pack_rows(unit: Unit, rows: Sequence[int]) -> bytes:
    """Return the bitmap of some rows of a unit."""
    bits = np.zeros(unit.count, dtype=np.uint8)
    index = np.asarray(rows, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= unit.count):
        raise DataError(f"{unit.unit_id}: kept rows reach {index.max()}, it has {unit.count}")
    bits[index] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_rows(unit: Unit, bitmap: bytes) -> list[int]:
    """List the rows that are set in a bitmap, ascending."""
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=unit.count, bitorder="little")
    rows: list[int] = np.flatnonzero(bits).tolist()
    return rows


def _read(store: Store, path: str, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(
            io.BytesIO(store.read(path)),
            columns=columns,
            use_threads=False,
            page_checksum_verification=True,
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{join_url(store.url, path)}: a part of the plan cannot be read ({error}); delete the"
            " folder plan/ of this run to have it planned again"
        ) from error


_BESIDE = b"consomme.beside"

_SHARD_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("name", pa.string()),
        pa.field("url", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string()),
    ]
)


def units_table(units: Iterable[Unit], bitmaps: Sequence[bytes | None]) -> pa.Table:
    """Make the table of a plan or a view: the fields of each unit, and its selected rows.

    Optional fields are columns only if a unit has them.
    """
    items = list(units)
    names = set_fields(items)
    schema = pa.schema([*unit_columns(names), pa.field("bitmap", pa.binary())])
    columns: dict[str, Sequence[object]] = {
        name: [getattr(unit, name) for unit in items] for name in names
    }
    return pa.table({**columns, "bitmap": bitmaps}, schema=schema)
