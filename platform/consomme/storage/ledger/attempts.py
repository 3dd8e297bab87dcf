"""Attempts: who may write into a run, and what of earlier writing counts.

Every time a run is started it becomes a new attempt, numbered by exclusively creating
`attempts/<n>.json`. That file lists the segments that count from before, so whatever a slow worker
of an earlier attempt publishes afterwards is invisible: it is fenced off by being unnamed, not by
a clock. The last entry of a finished run is closed; after it there is no attempt.

    attempts/000002.json            segments that count from before; closed or not
    commits/000002/<unit_id>.json   records of attempt 2, one per unit, created exclusively
    segments/000002/000000.parquet  records of attempt 2, packed by its driver
    segments/sealed-<sha>.parquet   records an attempt found of the one before it
    commits/part-000000-<sha>.parquet  all records, once the run is closed
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from consomme.base.errors import DataError, SupersededError
from consomme.storage.ledger.commits import (
    CommitRecord,
    merge,
    pack,
    unpack,
    unpack_column,
    unpack_one,
)
from consomme.storage.stores.store import Store, join_url

logger = logging.getLogger(__name__)

_ATTEMPTS, _COMMITS, _SEGMENTS = "attempts/", "commits/", "segments/"
OUTPUTS = ("data/", "rejects/", "shards/")
"""Folders of a run that hold what records name, and nothing else."""

RECORDS_PER_PART = 50_000
"""Records in one part of a closed run's ledger."""

_READERS = 16
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class AttemptEntry:
    """What `attempts/<number>.json` says."""

    number: int
    """From 1; 0 stands for a run that was never started."""

    segments: tuple[str, ...] = ()
    """Segments that count from before this attempt."""

    is_closed: bool = False
    """Whether the run is complete; then `segments` is everything."""

    host: str = ""
    """Where the attempt's driver runs."""

    pid: int = 0
    """The driver's process id."""

    started: str = ""
    """When, in ISO 8601, by the driver's clock."""


def latest(store: Store) -> AttemptEntry:
    """Read the newest attempt of a run; number 0 if there is none."""
    name = ""
    for file in store.list(_ATTEMPTS):
        name = file.path
    if not name:
        return AttemptEntry(number=0)
    content: dict[str, Any] = json.loads(store.read(name))
    content["segments"] = tuple(content["segments"])
    return AttemptEntry(**content)


def start(store: Store) -> AttemptEntry:
    """Begin a new attempt: seal what the one before committed, and fence it off.

    Returns:
        The new attempt's entry, or the closing one if the run is complete.
    """
    while True:
        before = latest(store)
        if before.is_closed:
            return before
        loose, segments = _visible(store, before)
        done = _ids(store, segments)
        fresh = [path for path in loose if _unit_of(path) not in done]
        if fresh:
            records = (r for r in _read_many(store, fresh) if r is not None)
            segments.append(_write_sealed(store, list(records)))
        if _create(store, before.number + 1, segments, is_closed=False):
            if store.create(_entry_path(before.number + 1), b"{}"):
                raise DataError(
                    f"{store.url}: this storage lets a second writer replace what a first has"
                    " created; it ignores If-None-Match. Units could then be committed twice; keep"
                    " runs on storage that has conditional writes"
                )
            store.delete_many(loose)
            return latest(store)


def check_current(store: Store, number: int) -> None:
    """Make sure that no later attempt has begun.

    Raises:
        SupersededError: One has; says who.
    """
    if store.exists(_entry_path(number + 1)):
        entry = latest(store)
        whose = f"attempt {entry.number}, started {entry.started} on {entry.host} (pid {entry.pid})"
        raise SupersededError(
            f"{store.url}: attempt {number} was overtaken by {whose}; this one stops."
            " Nothing is lost: what it committed before counts"
        )


def commit_path(number: int, unit_id: str) -> str:
    """Where an attempt's record of a unit is."""
    return f"{_COMMITS}{number:06d}/{unit_id}.json"


def write_segment(store: Store, number: int, sequence: int, records: Sequence[CommitRecord]) -> str:
    """Pack some of an attempt's committed records, then remove the single ones.

    Only the attempt's own driver may do so; `sequence` counts up from 0.
    """
    path = f"{_SEGMENTS}{number:06d}/{sequence:06d}.parquet"
    store.write(path, pack(sorted(records, key=lambda record: record.unit_id)))
    store.delete_many(commit_path(number, record.unit_id) for record in records)
    return path


def close(store: Store, number: int) -> None:
    """Rewrite the whole ledger in its final form and end the run; doing it again changes nothing.

    Raises:
        SupersededError: A later attempt has begun.
    """
    check_current(store, number)
    parts: list[str] = []
    records = iter_records(store)
    while chunk := list(islice(records, RECORDS_PER_PART)):
        data = pack(chunk)
        # Named by content: a slow closer that was overtaken cannot replace what counts.
        parts.append(f"{_COMMITS}part-{len(parts):06d}-{sha256(data).hexdigest()[:8]}.parquet")
        store.write(parts[-1], data)
    if not _create(store, number + 1, parts, is_closed=True):
        check_current(store, number)


def iter_records(store: Store) -> Iterator[CommitRecord]:
    """Yield every record that counts, in the order of unit ids.

    Memory is one row group per segment, and the loose records of a running attempt.
    """
    entry = latest(store)
    loose, segments = _visible(store, entry)
    singles = [r for r in _read_many(store, loose) if r is not None]
    if len(singles) < len(loose):
        # They were packed while we looked; now they are in a segment.
        _, segments = _visible(store, entry)
    streams = [unpack(store.open(path), join_url(store.url, path)) for path in segments]
    yield from merge([*streams, iter(singles)])


def find_record(store: Store, unit_id: str) -> CommitRecord | None:
    """Read one unit's record of a closed run, without a look at most others; None if it has none.

    Raises:
        DataError: The run is not closed.
    """
    entry = latest(store)
    if not entry.is_closed:
        raise DataError(f"{store.url}: this run is not finished; run it again to go on")
    for path in entry.segments:
        with store.open(path) as file:
            found = unpack_one(file, unit_id, join_url(store.url, path))
        if found is not None:
            return found
    return None


def done_units(store: Store) -> set[str]:
    """List the ids of all units whose record counts, without opening single records."""
    loose, segments = _visible(store, latest(store))
    return _ids(store, segments).union(map(_unit_of, loose))


def iter_field(store: Store, name: str) -> Iterator[Any]:
    """Yield one field of every record that counts, in no order: `counts` or `sums`."""
    entry = latest(store)
    loose, segments = _visible(store, entry)
    singles = [r for r in _read_many(store, loose) if r is not None]
    if len(singles) < len(loose):
        _, segments = _visible(store, entry)
    packed: set[str] = _ids(store, segments) if singles else set()
    for path in segments:
        with store.open(path) as file:
            for text in unpack_column(file, name, join_url(store.url, path)).to_pylist():
                yield json.loads(text)
    for record in singles:
        if record.unit_id not in packed:
            yield getattr(record, name)


def remove_orphans(store: Store) -> int:
    """Remove from a closed run what no record names, and count it.

    These are outputs of workers that died before they committed, or came second.
    """
    named = np.sort(
        np.fromiter(
            (_hash(file.path) for record in iter_records(store) for file in record.files),
            dtype=np.uint64,
        )
    )

    def is_stray(path: str) -> bool:
        at = int(np.searchsorted(named, _hash(path)))
        return at == len(named) or int(named[at]) != _hash(path)

    number = store.remove_orphans()
    for folder in OUTPUTS:
        number += _delete(store, (f.path for f in store.list(folder) if is_stray(f.path)))
    for folder in (_SEGMENTS, "inflight/"):
        _delete(store, (file.path for file in store.list(folder)))
    parts = set(latest(store).segments)
    _delete(store, (file.path for file in store.list(_COMMITS) if file.path not in parts))
    return number


def _visible(store: Store, entry: AttemptEntry) -> tuple[list[str], list[str]]:
    """List the single records and the segments that count."""
    segments = list(entry.segments)
    if entry.is_closed or not entry.number:
        return [], segments
    # Single records first: whoever packs one removes it after the segment is there.
    loose = [file.path for file in store.list(f"{_COMMITS}{entry.number:06d}/")]
    segments += [file.path for file in store.list(f"{_SEGMENTS}{entry.number:06d}/")]
    return loose, segments


def _ids(store: Store, segments: Sequence[str]) -> set[str]:
    def read(path: str) -> list[str]:
        with store.open(path) as file:
            found: list[str] = unpack_column(file, "unit_id", join_url(store.url, path)).to_pylist()
            return found

    ids: set[str] = set()
    for found in _in_threads(read, segments):
        ids.update(found)
    return ids


def _read_many(store: Store, paths: Sequence[str]) -> Iterator[CommitRecord | None]:
    """Read single records; None for one that has just been packed away."""

    def read(path: str) -> CommitRecord | None:
        try:
            return CommitRecord.from_json(store.read(path), join_url(store.url, path))
        except FileNotFoundError:
            return None

    return _in_threads(read, paths)


def _in_threads(function: Callable[[str], _T], paths: Sequence[str]) -> Iterator[_T]:
    """Apply to each path, in order; requests overlap."""
    if len(paths) < 2:
        yield from map(function, paths)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        for begin in range(0, len(paths), 64 * _READERS):
            yield from pool.map(function, paths[begin : begin + 64 * _READERS])


def _write_sealed(store: Store, records: list[CommitRecord]) -> str:
    data = pack(sorted(records, key=lambda record: record.unit_id))
    path = f"{_SEGMENTS}sealed-{sha256(data).hexdigest()[:16]}.parquet"
    store.write(path, data)
    return path


def _create(store: Store, number: int, segments: Sequence[str], *, is_closed: bool) -> bool:
    content = {
        "number": number,
        "segments": list(segments),
        "is_closed": is_closed,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return store.create(_entry_path(number), json.dumps(content, indent=1).encode())


def _entry_path(number: int) -> str:
    return f"{_ATTEMPTS}{number:06d}.json"


def _unit_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _hash(path: str) -> int:
    return int.from_bytes(sha256(path.encode()).digest()[:8], "big")


def _delete(store: Store, paths: Iterator[str]) -> int:
    number = 0
    while chunk := list(islice(paths, 10_000)):
        store.delete_many(chunk)
        number += len(chunk)
    return number


def reopen(store: Store, damaged: set[str]) -> AttemptEntry:
    """Take a closed run up again without the records of damaged units.

    Returns:
        The new attempt's entry; the records that are left are sealed in it.
    """
    before = latest(store)
    kept = [record for record in iter_records(store) if record.unit_id not in damaged]
    segments = [_write_sealed(store, kept)] if kept else []
    _create(store, before.number + 1, segments, is_closed=False)
    return latest(store)
