"""Find samples that kill the process working on them, by bisection over restarts.

Before a worker processes a unit, it writes a note to the run folder. If the note is still there
when the unit is scheduled again, the process or its node died. One death is treated as an accident.
After two, the unit is processed in groups, each noted beforehand; a group that kills the process is
split, and a sample that kills it twice alone is a poison row. Then the whole unit is processed
without its poison rows, so bisection decides which samples are left out but never changes a result.
A poison row thus costs three more deaths and one sample, not the run.
"""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from consomme.base.errors import ClusterError
from consomme.storage.stores.store import Store, join_url

GROUPS = 8
"""Number of parts into which a group that killed the process is split."""

INNOCENT_DEATHS = 1
"""Deaths after which a unit is not bisected yet: nodes are lost every day."""

ALONE_DEATHS = 2
"""Deaths with a sample alone in its group that make it a poison row; one may be chance."""

UNEXPLAINED_DEATHS = 3
"""Deaths with the whole unit, after every group passed alone, that fail the run."""

_OLD_KEYS = {"condemned": "poison_rows", "baffling": "unexplained_deaths"}

T = TypeVar("T")


@dataclass(kw_only=True)
class Note:
    """State of one unit's bisection, stored in the run folder."""

    deaths: int = 0
    """How often the process died while it processed the whole unit."""

    testing: list[int] | None = None
    """Rows of the group being processed; None means the whole unit."""

    groups: list[list[int]] = field(default_factory=list)
    """Groups still to be tested."""

    alone: dict[str, int] = field(default_factory=dict)
    """Deaths with a single row in the group, by row."""

    poison_rows: list[int] = field(default_factory=list)
    """Rows that kill the process."""

    is_tried: bool = False
    """Whether all groups were tested."""

    unexplained_deaths: int = 0
    """Deaths with the whole unit after that."""

    def add_death(self, rows: Sequence[int]) -> None:
        """Update the state after one more death."""
        if self.testing is None:
            self.deaths += 1
            self.unexplained_deaths += self.is_tried
            if self.deaths > INNOCENT_DEATHS and not (self.is_tried or self.groups):
                self.groups = split(rows)
        elif len(self.testing) > 1:
            self.groups += split(self.testing)
        else:
            (row,) = self.testing
            self.alone[str(row)] = self.alone.get(str(row), 0) + 1
            if self.alone[str(row)] >= ALONE_DEATHS:
                self.poison_rows.append(row)
            else:
                self.groups.append([row])
        self.testing = None


def note_path(unit_id: str) -> str:
    """Path of the note on a unit."""
    return f"inflight/{unit_id}.json"


class ReadWriteGate:
    """Readers-writer lock over the units of one process: many share it, or one is alone.

    While a group is tested, a death must not be caused by another unit of the same process.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_shared = 0
        self._is_alone = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Enter together with others; wait while one is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone)
            self._num_shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_shared -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until all others have left, and enter alone."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_alone or self._num_shared))
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


def run_with_bisection(
    store: Store,
    unit_id: str,
    rows: Sequence[int],
    work: Callable[[Sequence[int]], T],
    gate: ReadWriteGate | None = None,
) -> tuple[T, list[int]]:
    """Process a unit; if it killed its process before, find and leave out the poison rows.

    The note stays until `clear`, to be called once the unit is committed.

    Args:
        store: The run folder, so that notes survive the process.
        unit_id: The unit.
        rows: Rows of the unit.
        work: Processes some of the rows. It may be called on parts of a unit and have its result
            discarded, so it must be deterministic.
        gate: Shared by the units that one process handles concurrently.

    Returns:
        The result of `work` on the remaining rows, and the poison rows.

    Raises:
        ClusterError: The unit keeps killing the process although no part of it does.
    """
    path = note_path(unit_id)
    note = _load(store, path)
    if note is None:
        note = Note()
    else:
        note.add_death(rows)
    if note.unexplained_deaths >= UNEXPLAINED_DEATHS:
        # The next attempt starts over.
        store.delete(path)
        raise ClusterError(
            f"{join_url(store.url, path)}: this unit of {len(rows)} samples killed its process"
            f" {note.deaths} times, although no part of it does alone; most likely memory runs out."
            " Use fewer samples per unit or a smaller batch, or give workers more memory, then"
            " run the same command again"
        )
    gate = gate or ReadWriteGate()
    if note.groups:
        with gate.alone():
            while note.groups:
                note.testing = note.groups.pop()
                _save(store, path, note)
                work(note.testing)
                note.testing = None
            note.is_tried = True
            _save(store, path, note)
    with gate.together():
        _save(store, path, note)
        poison_rows = set(note.poison_rows)
        return work([row for row in rows if row not in poison_rows]), sorted(poison_rows)


def clear(store: Store, unit_id: str) -> None:
    """Delete the note on a committed unit."""
    store.delete(note_path(unit_id))


def split(rows: Sequence[int]) -> list[list[int]]:
    """Split rows into at most `GROUPS` contiguous groups of nearly equal size."""
    num_groups = min(GROUPS, len(rows))
    edges = [len(rows) * k // num_groups for k in range(num_groups + 1)]
    return [list(rows[begin:end]) for begin, end in pairwise(edges)]


def _load(store: Store, path: str) -> Note | None:
    try:
        content: dict[str, Any] = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    # Runs started by an earlier version have notes with the old keys.
    return Note(**{_OLD_KEYS.get(key, key): value for key, value in content.items()})


def _save(store: Store, path: str, note: Note) -> None:
    store.write(path, json.dumps(dataclasses.asdict(note)).encode())
