"""Read one unit, by whichever process is to do it, and pack it for the way to another.

Two kinds of rows travel through Ray Data: a unit's name, for an actor that reads it itself, and a
unit's samples, read ahead by a task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample, samples_to_table, table_to_samples
from consomme.execution.spans import Spans, timed
from consomme.execution.wire import from_bytes, rejects_from_json, rejects_to_json, to_bytes
from consomme.storage.ledger.inflight import ReadWriteGate, clear, work_safely
from consomme.storage.plan import Work
from consomme.storage.stores.store import Store
from consomme.storage.unit import ReadUnit, Unit

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was in a unit."""

    samples: dict[int, Sample]
    """By row, ascending."""

    rejects: list[tuple[int, Reject]]
    """Rows that could not be read."""


def load(store: Store, work: Work, read: ReadUnit, gate: ReadWriteGate | None = None) -> Loaded:
    """Read a unit, or the rows of it that a view keeps.

    Args:
        store: The run folder, where notes about units that kill their process are kept.
        work: The unit, and which rows.
        read: Reads it.
        gate: Shared by what else this process does at the time.

    Raises:
        DataError: Rows that the view keeps cannot be read any more.
    """
    samples, rejects = _read_safely(store, work.unit, read, gate)
    if work.rows is None:
        return Loaded(samples=dict(samples), rejects=rejects)
    chosen = set(work.rows)
    found = {number: sample for number, sample in samples if number in chosen}
    missing = len(chosen) - len(found)
    if missing:
        raise DataError(
            f"{work.unit.shard}: {missing} rows that the view keeps are not readable; the shard"
            " changed since it was scored"
        )
    return Loaded(samples=found, rejects=[])


def name_row(work: Work) -> Row:
    """Make the row of a unit that is still to be read."""
    return {
        "unit": json.dumps(work.unit.to_dict(), sort_keys=True),
        "bitmap": work.bitmap,
        "numbers": None,
        "samples": None,
        "rejects": None,
        "spans": "[]",
    }


def sample_row(store: Store, work: Work, read: ReadUnit) -> Row:
    """Read a unit and make the row that carries its samples."""
    spans: Spans = []
    with timed(spans, "read"):
        loaded = load(store, work, read)
    return {
        "unit": json.dumps(work.unit.to_dict(), sort_keys=True),
        "bitmap": work.bitmap,
        "numbers": json.dumps(list(loaded.samples)),
        "samples": to_bytes(samples_to_table(loaded.samples.values())),
        "rejects": rejects_to_json(loaded.rejects),
        "spans": json.dumps(spans),
    }


def unpack(row: Row) -> tuple[Work, Loaded | None, Spans]:
    """Take a row apart; there are no samples if the unit is still to be read."""
    work = Work(unit=Unit.from_dict(json.loads(row["unit"])), bitmap=row["bitmap"])
    spans: Spans = json.loads(row["spans"])
    if row["samples"] is None:
        return work, None, spans
    samples = table_to_samples(from_bytes(row["samples"]))
    loaded = Loaded(
        samples=dict(zip(json.loads(row["numbers"]), samples, strict=True)),
        rejects=rejects_from_json(row["rejects"]),
    )
    return work, loaded, spans


def _read_safely(
    store: Store, unit: Unit, read_unit: ReadUnit, gate: ReadWriteGate | None
) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read a unit; if native code (Parquet) dies on it, its rows become rejects."""
    if not unit.shard.endswith(".parquet"):
        return read_unit(unit)

    def read(
        rows: Sequence[int],
    ) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
        return read_unit(unit) if rows else ([], [])

    # Rows of one range cannot be told apart while reading: the whole range counts as one "row".
    note = f"read-{unit.unit_id}"
    found, poison_rows = work_safely(store, note, [0], read, gate)
    clear(store, note)
    if not poison_rows:
        return found
    rejects = [
        (
            row,
            Reject(
                sample_id=f"{unit.unit_id}@{row}",
                source=unit.source,
                reason="killed_worker",
                detail="reading this range ended the process each time it was tried",
                reference=f"{unit.shard}@row{unit.start + row}",
            ),
        )
        for row in range(unit.count)
    ]
    return [], rejects


ROW_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("bitmap", pa.binary()),
        pa.field("numbers", pa.string()),
        pa.field("samples", pa.large_binary()),
        pa.field("rejects", pa.string()),
        pa.field("spans", pa.string()),
    ]
)
"""A unit on its way to an actor."""
