"""Find the samples that kill the process which works on them, without watching it.

Whoever works on a unit first writes down that it does. If that note is still there when the unit
comes round again, the process died, or its node did. Once is an accident. After two deaths the unit
is worked through in groups, each noted down before; a group that kills is split, and a sample that
kills twice all alone is a poison row. Then the unit is done whole, without its poison rows: trying
out changes which samples are left, never a result. Three deaths more cost one sample, not the run.
"""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from consomme.base.errors import ClusterError
from consomme.storage.stores.store import Store, join_url

GROUPS = 8
"""Into how many parts a killing group is split."""

INNOCENT_DEATHS = 1
"""Deaths a unit may have without being tried out: nodes are lost every day."""

ALONE_DEATHS = 2
"""Times a sample must kill alone to be a poison row; once may be chance."""

UNEXPLAINED_DEATHS = 3
"""Deaths of a whole unit, after each group was found harmless, that fail the run."""

_OLD_KEYS = {"condemned": "poison_rows", "baffling": "unexplained_deaths"}

T = TypeVar("T")


@dataclass(kw_only=True)
class Note:
    """What is known of one unit that was being worked on."""

    deaths: int = 0
    """How often the process died while it had the whole unit in hand."""

    testing: list[int] | None = None
    """The group in hand; None means the whole unit."""

    groups: list[list[int]] = field(default_factory=list)
    """Groups still to be tried out."""

    alone: dict[str, int] = field(default_factory=dict)
    """Deaths of single samples, by row."""

    poison_rows: list[int] = field(default_factory=list)
    """Rows that kill."""

    is_tried: bool = False
    """Whether all groups were tried out."""

    unexplained_deaths: int = 0
    """Deaths of the whole unit after that."""

    def add_death(self, rows: Sequence[int]) -> None:
        """Draw the conclusion from one more death."""
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
    """Where the note about a unit is."""
    return f"inflight/{unit_id}.json"


class ReadWriteGate:
    """Lets units work side by side in one process, or one of them alone.

    A group that is tried out must not be blamed for its neighbour's death.
    """

    def __init__(self) -> None:
        """Nobody is inside."""
        self._changed = threading.Condition()
        self._inside = 0
        self._is_alone = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Be inside with others; wait while one is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until all others are out, and be inside alone."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_alone or self._inside))
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
    """Work on a unit; if it killed its process before, leave out the samples that do.

    The note stays until `clear`, to be called when the unit is committed.

    Args:
        store: The run folder, where notes outlive the process.
        unit_id: The unit.
        rows: Its rows.
        work: Does the work on some of the rows. It may be called on parts of a unit, and its
            result thrown away; it must give the same for the same rows.
        gate: Shared by the units that one process works on at a time.

    Returns:
        What `work` gave for the rows that are left, and the poison rows.

    Raises:
        ClusterError: The unit keeps killing although no part of it does.
    """
    path = note_path(unit_id)
    note = _load(store, path)
    if note is None:
        note = Note()
    else:
        note.add_death(rows)
    if note.unexplained_deaths >= UNEXPLAINED_DEATHS:
        # So that the next attempt tries again from the start.
        store.delete(path)
        raise ClusterError(
            f"{join_url(store.url, path)}: this unit of {len(rows)} samples ended its process"
            f" {note.deaths} times, though no part of it does alone; most likely memory runs out."
            " Take fewer samples per unit or a smaller batch, or give workers more memory, then"
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
    """Forget the note about a unit: it is committed."""
    store.delete(note_path(unit_id))


def split(rows: Sequence[int]) -> list[list[int]]:
    """Split rows into at most `GROUPS` neighbouring groups of nearly equal size."""
    number = min(GROUPS, len(rows))
    return [
        list(rows[len(rows) * k // number : len(rows) * (k + 1) // number]) for k in range(number)
    ]


def _load(store: Store, path: str) -> Note | None:
    try:
        content: dict[str, Any] = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    # Notes of runs that an earlier version began.
    return Note(**{_OLD_KEYS.get(key, key): value for key, value in content.items()})


def _save(store: Store, path: str, note: Note) -> None:
    store.write(path, json.dumps(dataclasses.asdict(note)).encode())
