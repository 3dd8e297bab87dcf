"""Commit records: the output files and counts of one finished unit, as JSON or in segments.

A record holds no time, host or attempt, so the same work gives the same bytes. Thousands of records
are packed into one Parquet file, a segment, sorted by unit id; a restart reads segments instead of
single records.
"""

import dataclasses
import heapq
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.storage.unit import OPTIONAL_FIELDS, UNIT_FIELDS, Unit, set_fields
from consomme.storage.unit_columns import unit_columns

ROWS_PER_GROUP = 1024
"""Rows per row group: the records in memory at a time when a segment is read."""


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One output file of a unit."""

    kind: str
    """Kind of content: `scores`, `samples`, `rejects`, …"""

    path: str
    """Path relative to the run folder."""

    num_bytes: int
    """Size in bytes."""

    sha256: str
    """Checksum in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Record of one finished unit."""

    unit: Unit
    """The unit."""

    files: tuple[OutputFile, ...] = ()
    """Output files, rejects included."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by outcome, with `rejected/<reason>` for each reject reason."""

    sums: Mapping[str, float] = field(default_factory=dict)
    """Sums to be added over units, such as `nll` and `num_tokens`."""

    @property
    def unit_id(self) -> str:
        """The unit's id."""
        return self.unit.unit_id

    def path_of(self, kind: str) -> str | None:
        """Return the path of the file of one kind; None if the unit has none."""
        return next((file.path for file in self.files if file.kind == kind), None)

    def to_json(self) -> bytes:
        """Serialize as JSON; equal records give equal bytes."""
        return _json({**dataclasses.asdict(self), "unit": self.unit.to_dict()}).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "CommitRecord":
        """Parse what `to_json` wrote.

        Raises:
            DataError: It is not a commit record; `where` names the file.
        """
        try:
            content: dict[str, Any] = json.loads(data)
            # Earlier versions stored a histogram, which was always empty.
            content.pop("histogram", None)
            return cls(
                unit=Unit.from_dict(content.pop("unit")),
                files=tuple(OutputFile(**file) for file in content.pop("files")),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{where}: not a commit record ({error}); delete it to have its unit done again"
            ) from error


def reject_reasons(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """List the reject reasons in `counts` with their numbers, most frequent first."""
    prefix = "rejected/"
    reasons = [(key.removeprefix(prefix), n) for key, n in counts.items() if key.startswith(prefix)]
    return sorted(reasons, key=lambda item: (-item[1], item[0]))


def pack(records: Iterable[CommitRecord]) -> bytes:
    """Pack records, given in the order of unit ids, into the bytes of one segment."""
    items = list(records)
    names = set_fields(item.unit for item in items)
    units = {name: [getattr(item.unit, name) for item in items] for name in names}
    rest = {
        "files": [_json([dataclasses.asdict(file) for file in item.files]) for item in items],
        "counts": [_json(item.counts) for item in items],
        "sums": [_json(item.sums) for item in items],
    }
    buffer = io.BytesIO()
    table = pa.table({**units, **rest}, schema=segment_schema(names))
    pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP, compression="zstd")
    return buffer.getvalue()


def unpack(file: BinaryIO, where: str) -> Iterator[CommitRecord]:
    """Yield the records of one segment, one row group in memory at a time.

    Raises:
        DataError: The file is not a segment, or is damaged.
    """
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_PER_GROUP):
            yield from map(_record, batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: a segment of commit records cannot be read: {error}") from error


def unpack_one(file: BinaryIO, unit_id: str, where: str) -> CommitRecord | None:
    """Read one unit's record from a segment; row groups that cannot hold it are skipped.

    Raises:
        DataError: The file is not a segment, or is damaged.
    """
    try:
        filters = [("unit_id", "==", unit_id)]
        rows = pq.read_table(file, filters=filters, use_threads=False).to_pylist()
        return _record(rows[0]) if rows else None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: a segment of commit records cannot be read: {error}") from error


def unpack_column(file: BinaryIO, name: str, where: str) -> pa.ChunkedArray:
    """Read one column of a segment, such as `unit_id` or `counts`.

    Raises:
        DataError: The file is not a segment, or is damaged.
    """
    try:
        return pq.read_table(file, columns=[name], use_threads=False)[name]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{where}: a segment of commit records cannot be read: {error}") from error


def merge(streams: Sequence[Iterator[CommitRecord]]) -> Iterator[CommitRecord]:
    """Merge sorted streams by unit id; if several have a unit, the first stream wins."""
    last_id = None
    for record in heapq.merge(*streams, key=lambda record: record.unit_id):
        if record.unit_id != last_id:
            last_id = record.unit_id
            yield record


def _record(row: Mapping[str, Any]) -> CommitRecord:
    return CommitRecord(
        unit=Unit.from_dict({name: row[name] for name in UNIT_FIELDS if name in row}),
        files=tuple(OutputFile(**item) for item in json.loads(row["files"])),
        counts=json.loads(row["counts"]),
        sums=json.loads(row["sums"]),
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict)


def segment_schema(names: Sequence[str]) -> pa.Schema:
    """Return the columns of a segment: some fields of units, then the rest as JSON."""
    rest = [pa.field(name, pa.string()) for name in ("files", "counts", "sums")]
    return pa.schema([*unit_columns(names), *rest])


SEGMENT_SCHEMA = segment_schema([name for name in UNIT_FIELDS if name not in OPTIONAL_FIELDS])
"""Columns of most segments; those of optional fields of units come before `files`.

Segments of earlier versions have one more column, `histogram`, which is not read.
"""
