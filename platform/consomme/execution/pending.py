"""Feed a plan's pending units into Ray Data: each unit becomes one block of one row.

Units come from a lazy source, some dozens per reading task, not from a list on the driver. Ray
delays a task while the stages after it are full. So a million units cost the driver a few thousand
task descriptions, and no unit waits in memory unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from consomme.execution.datasource import UnitReadTask, UnitSource
from consomme.execution.loading import read_ahead
from consomme.execution.wire import UnitRow
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, PlanPart, part_unit_ids, read_part
from consomme.storage.stores.open import open_store
from consomme.storage.unit import ReadUnit

_READERS = 16

UNITS_PER_TASK = 64
"""Most units of one reading task."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Entries of one part of a plan, for one reading task."""

    path: str
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The units of a plan that are not committed yet."""

    slices: tuple[Slice, ...]
    num_units: int


def pending(folder: RunFolder, plan: Plan, num_readers: int) -> Pending:
    """List the units that are not committed, in slices small enough to keep all readers busy."""
    done = folder.done_units()

    def undone(part: PlanPart) -> tuple[str, list[int]]:
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


def reading(run_url: str, slices: Sequence[Slice], read: ReadUnit | None) -> UnitSource:
    """Make a Ray Data source of pending units.

    Args:
        run_url: The run folder.
        slices: The pending units.
        read: Reads units in the reading task; None passes on their names only, for actors that
            read for themselves.
    """
    return UnitSource(
        "Unit", [UnitReadTask(_Read(run_url, chosen, read), len(chosen.rows)) for chosen in slices]
    )


@dataclass(frozen=True)
class _Read:
    run_url: str
    chosen: Slice
    read: ReadUnit | None

    def __call__(self) -> Iterator[pa.Table]:
        store = open_store(self.run_url)
        for work in read_part(store, self.chosen.path, self.chosen.rows):
            row = UnitRow(work=work) if self.read is None else read_ahead(store, work, self.read)
            yield row.pack()
