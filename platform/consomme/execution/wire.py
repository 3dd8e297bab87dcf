"""The rows that travel through Ray Data: a unit on its way to an actor, and its receipt.

Each is one row of one block, so Ray Data can neither split nor merge units.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from consomme.base.errors import ConsommeError
from consomme.base.sample import Reject, Sample
from consomme.base.sample_tables import samples_to_table, table_to_samples
from consomme.execution.errors import pack_error, unpack_error
from consomme.execution.spans import Spans
from consomme.execution.stage import Gauge
from consomme.storage.ledger.commits import CommitRecord
from consomme.storage.plan import Work
from consomme.storage.unit import Unit

Row = dict[str, Any]
"""A row of Ray Data."""


@dataclass(frozen=True, kw_only=True)
class UnitSamples:
    """What was read of a unit."""

    samples: dict[int, Sample]
    """By row, ascending."""

    rejects: list[tuple[int, Reject]]
    """Rows that could not be read."""


@dataclass(frozen=True, kw_only=True)
class UnitRow:
    """A unit on its way to an actor: its name only, or the samples that a task has read ahead."""

    work: Work
    """The unit, and which of its rows are wanted."""

    content: UnitSamples | None = None
    """None lets the actor read the unit."""

    spans: Spans = field(default_factory=list)
    """Time spent on it so far."""

    def pack(self) -> pa.Table:
        """Make a table of one row."""
        row: Row = {
            "unit": json.dumps(self.work.unit.to_dict(), sort_keys=True),
            "bitmap": self.work.bitmap,
            "numbers": None,
            "samples": None,
            "rejects": None,
            "spans": json.dumps(self.spans),
        }
        if self.content is not None:
            row["numbers"] = json.dumps(list(self.content.samples))
            row["samples"] = _to_bytes(samples_to_table(self.content.samples.values()))
            row["rejects"] = _rejects_to_json(self.content.rejects)
        return pa.Table.from_pylist([row], schema=_UNIT_SCHEMA)

    @classmethod
    def unpack(cls, row: Mapping[str, Any]) -> UnitRow:
        """Read a row that `pack` made."""
        content = None
        if row["samples"] is not None:
            samples = table_to_samples(_from_bytes(row["samples"]))
            content = UnitSamples(
                samples=dict(zip(json.loads(row["numbers"]), samples, strict=True)),
                rejects=_rejects_from_json(row["rejects"]),
            )
        unit = Unit.from_dict(json.loads(row["unit"]))
        return cls(
            work=Work(unit=unit, bitmap=row["bitmap"]),
            content=content,
            spans=json.loads(row["spans"]),
        )


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What comes back for a unit: its commit record, or why there is none."""

    record: CommitRecord | None = None
    error: ConsommeError | None = None
    """Raised in an actor, it would come back as one of Ray's own classes; so it is returned."""

    handed_back: str = ""
    """Id of a unit that this worker could not do for want of storage, so that another one does;
    `error` says why."""

    spans: Spans = field(default_factory=list)
    gauges: list[Gauge] = field(default_factory=list)

    def pack(self) -> Row:
        """Make a row of it."""
        return {
            "record": self.record.to_json() if self.record else b"",
            "error": pack_error(self.error) if self.error else "",
            "handed_back": self.handed_back,
            "spans": json.dumps(self.spans),
            "gauges": json.dumps(self.gauges),
        }

    @classmethod
    def unpack(cls, row: Mapping[str, Any]) -> Receipt:
        """Read a row that `pack` made."""
        record = CommitRecord.from_json(row["record"], "a receipt") if row["record"] else None
        return cls(
            record=record,
            error=unpack_error(row["error"]) if row["error"] else None,
            handed_back=row["handed_back"],
            spans=json.loads(row["spans"]),
            gauges=json.loads(row["gauges"]),
        )


def _to_bytes(table: pa.Table) -> bytes:
    """Pack a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _from_bytes(data: bytes) -> pa.Table:
    """Unpack what `_to_bytes` packed, without copying."""
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


def _rejects_to_json(rejects: Iterable[tuple[int, Reject]]) -> str:
    return json.dumps([[row, asdict(reject)] for row, reject in rejects])


def _rejects_from_json(text: str) -> list[tuple[int, Reject]]:
    return [(row, Reject(**fields)) for row, fields in json.loads(text)]


_UNIT_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("bitmap", pa.binary()),
        pa.field("numbers", pa.string()),
        pa.field("samples", pa.large_binary()),
        pa.field("rejects", pa.string()),
        pa.field("spans", pa.string()),
    ]
)
