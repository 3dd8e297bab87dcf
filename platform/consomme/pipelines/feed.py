"""Feed a plan's pending units into Ray Data: each unit is read and becomes one block of one row.

One decision is made here: units are read inside a lazy source, some dozens per task, not from a
list on the driver. Ray holds a task back while the stages behind it are full, so that a million
units cost the driver a few thousand task descriptions and no unit waits in memory unread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from consomme.base.errors import DataError
from consomme.base.sample import Reject, samples_to_table
from consomme.pipelines.packing import rejects_to_json, to_bytes
from consomme.pipelines.spans import now
from consomme.storage.files import open_store
from consomme.storage.ledger import RunFolder
from consomme.storage.plan import Part, Plan, Work, part_unit_ids, read_part
from consomme.storage.suspects import work_safely
from consomme.storage.units import ReadUnit, Unit, read_unit

_READERS = 16

UNITS_PER_TASK = 64
"""Most units one reading task goes through."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some entries of one part of a plan."""

    path: str
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What is left of a plan."""

    slices: tuple[Slice, ...]
    num_units: int


def pending(folder: RunFolder, plan: Plan, num_readers: int) -> Pending:
    """Cut what is not committed yet into slices, small enough to keep all readers busy."""
    done = folder.done_units()

    def undone(part: Part) -> tuple[str, list[int]]:
        if not done:
            return part.path, list(range(part.num_units))
        ids = part_unit_ids(folder.store, part.path)
        return part.path, [number for number, unit_id in enumerate(ids) if unit_id not in done]

    with ThreadPoolExecutor(_READERS) as pool:
        left = [found for found in pool.map(undone, plan.parts) if found[1]]
    total = sum(len(rows) for _, rows in left)
    size = max(1, min(UNITS_PER_TASK, total // (4 * max(1, num_readers))))
    slices = [
        Slice(path=path, rows=tuple(rows[begin : begin + size]))
        for path, rows in left
        for begin in range(0, len(rows), size)
    ]
    return Pending(slices=tuple(slices), num_units=total)


class UnitSource(Datasource):  # type: ignore[misc]
    """A Ray Data source whose blocks are units; see the module."""

    def __init__(self, run_url: str, slices: Sequence[Slice], read: ReadUnit = read_unit) -> None:
        """Keep where the plan is; nothing is read yet."""
        super().__init__()
        self.run_url = run_url
        self.slices = slices
        self.read = read

    def get_name(self) -> str:
        """Name of the stage in Ray's own reports."""
        return "Unit"

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Make one task per slice, however many Ray would like."""
        return [
            ReadTask(
                _Read(self.run_url, chosen, self.read),
                BlockMetadata(
                    num_rows=len(chosen.rows), size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for chosen in self.slices
        ]


@dataclass(frozen=True)
class _Read:
    run_url: str
    chosen: Slice
    read: ReadUnit

    def __call__(self) -> Iterator[pa.Table]:
        store = open_store(self.run_url)
        for work in read_part(store, self.chosen.path, self.chosen.rows):
            yield pa.Table.from_pylist(
                [read_row(self.run_url, work, self.read)], schema=READ_SCHEMA
            )


def read_row(run_url: str, work: Work, read: ReadUnit = read_unit) -> dict[str, Any]:
    """Read one unit's samples into one row: their bytes, their rows, and the rejects."""
    began = now()
    unit = work.unit
    samples, rejects = _read_safely(run_url, unit, read)
    if work.rows is not None:
        chosen = set(work.rows)
        samples = [(number, sample) for number, sample in samples if number in chosen]
        missing = len(chosen) - len(samples)
        if missing:
            raise DataError(
                f"{unit.shard}: {missing} rows that the view keeps are not readable; the shard"
                " changed since it was scored"
            )
        rejects = []
    return {
        "unit": json.dumps(unit.to_dict(), sort_keys=True),
        "numbers": json.dumps([number for number, _ in samples]),
        "samples": to_bytes(samples_to_table(sample for _, sample in samples)),
        "rejects": rejects_to_json(rejects),
        "spans": json.dumps({"read": [began, now()]}),
    }


def _read_safely(
    run_url: str, unit: Unit, read_unit: ReadUnit
) -> tuple[list[Any], list[tuple[int, Reject]]]:
    """Read a unit; if native code (Parquet) dies on it, its rows become rejects."""
    if not unit.shard.endswith(".parquet"):
        return read_unit(unit)
    store = open_store(run_url)

    def read(rows: Sequence[int]) -> tuple[list[Any], list[tuple[int, Reject]]]:
        return read_unit(unit) if rows else ([], [])

    # Rows of one range cannot be told apart while reading: the whole range counts as one "row".
    found, condemned = work_safely(store, f"read-{unit.unit_id}", [0], read)
    store.delete(f"inflight/read-{unit.unit_id}.json")
    if not condemned:
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


READ_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("numbers", pa.string()),
        pa.field("samples", pa.large_binary()),
        pa.field("rejects", pa.string()),
        pa.field("spans", pa.string()),
    ]
)
"""A unit on its way from reading to work."""
