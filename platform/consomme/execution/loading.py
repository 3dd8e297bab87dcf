"""Read one unit, in an actor or in a task ahead of it; a unit that kills its reader is rejected."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from consomme.base.errors import DataError, StorageAwayError
from consomme.base.sample import Reject, Sample
from consomme.execution.spans import Spans, timed
from consomme.execution.wire import UnitRow, UnitSamples
from consomme.storage.ledger.inflight import ReadWriteGate, clear, run_with_bisection
from consomme.storage.plan import Work
from consomme.storage.stores.local import away_errors
from consomme.storage.stores.store import Store
from consomme.storage.unit import ReadUnit, Unit

logger = logging.getLogger(__name__)


def load(
    store: Store, work: Work, read: ReadUnit, gate: ReadWriteGate | None = None
) -> UnitSamples:
    """Read a unit, or the rows of it that a view keeps.

    Args:
        store: The run folder, which holds the notes about units that kill their process.
        work: The unit, and which rows.
        read: Reads it.
        gate: Shared by what else this process does at the time.

    Raises:
        DataError: Rows that the view keeps cannot be read any more.
    """
    samples, rejects = _read_safely(store, work.unit, read, gate)
    if work.rows is None:
        return UnitSamples(samples=dict(samples), rejects=rejects)
    chosen = set(work.rows)
    found = {number: sample for number, sample in samples if number in chosen}
    missing = len(chosen) - len(found)
    if missing:
        raise DataError(
            f"{work.unit.shard}: {missing} rows that the view keeps are not readable; the shard"
            " changed since it was scored"
        )
    return UnitSamples(samples=found, rejects=[])


def read_ahead(store: Store, work: Work, read: ReadUnit) -> UnitRow:
    """Read a unit in a task, for an actor elsewhere.

    Without storage here, the actor gets the unit unread: it may be on a node that has storage.
    """
    spans: Spans = []
    try:
        with timed(spans, "read"), away_errors():
            content = load(store, work, read)
    except StorageAwayError as error:
        logger.warning("unit %s is not read ahead: %s", work.unit.unit_id, error)
        return UnitRow(work=work)
    return UnitRow(work=work, content=content, spans=spans)


def _read_safely(
    store: Store, unit: Unit, read_unit: ReadUnit, gate: ReadWriteGate | None
) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read a unit; if native code (Arrow) crashes on it, its rows become rejects."""
    if not unit.shard.endswith((".parquet", ".arrow")):
        return read_unit(unit)

    def read(
        rows: Sequence[int],
    ) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
        return read_unit(unit) if rows else ([], [])

    # Reading cannot be bisected by row: the whole range counts as one "row".
    note = f"read-{unit.unit_id}"
    found, poison_rows = run_with_bisection(store, note, [0], read, gate)
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
                detail="reading this range ended the process each time",
                reference=f"{unit.shard}@row{unit.start + row}",
            ),
        )
        for row in range(unit.count)
    ]
    return [], rejects
