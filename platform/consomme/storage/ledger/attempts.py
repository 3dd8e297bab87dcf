"""Attempts: who may write into a run, and which earlier records are valid.

Each start of a run is a new attempt, numbered by exclusively creating `attempts/<n>.json`. That
file lists the segments that are valid from earlier attempts. Whatever a slow worker of an earlier
attempt publishes afterwards is not listed and therefore ignored: fencing needs no clock. The last
entry of a finished run is marked closed; no attempt follows it.

    attempts/000002.json            valid segments of earlier attempts; closed or not
    commits/000002/<unit_id>.json   records of attempt 2, one per unit, created exclusively
    segments/000002/000000.parquet  records of attempt 2, packed by its driver
    segments/sealed-<sha>.parquet   loose records of an attempt, packed by the next one
    commits/part-000000-<sha>.parquet  all records, once the run is closed
"""

import dataclasses
import json
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import Any, BinaryIO, Self, TypeVar

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
"""Folders of a run that hold the files named by records, and nothing else."""

RECORDS_PER_PART = 50_000
"""Records per part file of a closed run's ledger."""

_READ_THREADS = 16
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class AttemptEntry:
    """Content of `attempts/<number>.json`."""

    number: int
    """Counts from 1; 0 means that the run was never started."""

    segments: tuple[str, ...] = ()
    """Valid segments of earlier attempts."""

    is_closed: bool = False
    """Whether the run is complete; `segments` then holds all its records."""

    host: str = ""
    """Host of the attempt's driver."""

    pid: int = 0
    """The driver's process id."""

    started: str = ""
    """Start time in ISO 8601, by the driver's clock."""

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read an entry.

        Raises:
            ValueError: It is none.
        """
        content = json.loads(data)
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.keys() != expected:
            found = ", ".join(map(repr, content)) if isinstance(content, dict) else repr(content)
            raise ValueError(
                f"found {found[:200]}, expected the keys {', '.join(sorted(expected))}"
            )
        return cls(**content | {"segments": tuple(content["segments"])})


def latest(store: Store) -> AttemptEntry:
    """Read the newest attempt of a run; number 0 if there is none."""
    name = ""
    for file in store.list(_ATTEMPTS):
        name = file.path
    if not name:
        return AttemptEntry(number=0)
    try:
        return AttemptEntry.from_json(store.read(name))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{join_url(store.url, name)}: not an entry of the ledger: {error}; to see what can be"
            f" done: consomme verify {store.url}"
        ) from error


def start(store: Store) -> AttemptEntry:
    """Begin a new attempt: seal the records of the previous one and fence it off.

    Returns:
        The new attempt's entry, or the closing one if the run is complete.
    """
    while True:
        previous = latest(store)
        if previous.is_closed:
            return previous
        loose, segments = _valid_files(store, previous)
        packed = _unit_ids(store, segments)
        unpacked = [path for path in loose if _unit_id_of(path) not in packed]
        if unpacked:
            records = (r for r in _read_records(store, unpacked) if r is not None)
            segments.append(_write_sealed(store, list(records)))
        if _create(store, previous.number + 1, segments, is_closed=False):
            if store.create(_entry_path(previous.number + 1), b"{}"):
                raise DataError(
                    f"{store.url}: this storage lets a second writer replace a file that the first"
                    " one created; it ignores If-None-Match. Units could then be committed twice;"
                    " keep runs on storage that has conditional writes"
                )
            store.delete_many(loose)
            return latest(store)


def check_current(store: Store, number: int) -> None:
    """Check that no later attempt has begun.

    Raises:
        SupersededError: One has; the message names it.
    """
    if store.exists(_entry_path(number + 1)):
        entry = latest(store)
        later = f"attempt {entry.number}, started {entry.started} on {entry.host} (pid {entry.pid})"
        raise SupersededError(
            f"{store.url}: attempt {number} was overtaken by {later}; this one stops."
            " Nothing is lost: what it finished before stays finished"
        )


def commit_path(number: int, unit_id: str) -> str:
    """Path of an attempt's record of a unit."""
    return f"{_COMMITS}{number:06d}/{unit_id}.json"


def write_segment(store: Store, number: int, sequence: int, records: Sequence[CommitRecord]) -> str:
    """Pack some of an attempt's committed records into a segment, then delete the loose records.

    Only the attempt's own driver may call this; `sequence` counts up from 0.
    """
    path = f"{_SEGMENTS}{number:06d}/{sequence:06d}.parquet"
    store.write(path, pack(sorted(records, key=lambda record: record.unit_id)))
    store.delete_many(commit_path(number, record.unit_id) for record in records)
    return path


def close(store: Store, number: int) -> None:
    """Rewrite the whole ledger in its final form and close the run. Idempotent.

    Raises:
        SupersededError: A later attempt has begun.
    """
    check_current(store, number)
    parts: list[str] = []
    records = iter_records(store)
    while chunk := list(islice(records, RECORDS_PER_PART)):
        data = pack(chunk)
        # Named by content, so that an overtaken process cannot replace a valid part.
        parts.append(f"{_COMMITS}part-{len(parts):06d}-{sha256(data).hexdigest()[:8]}.parquet")
        store.write(parts[-1], data)
    if not _create(store, number + 1, parts, is_closed=True):
        check_current(store, number)


def iter_records(store: Store) -> Iterator[CommitRecord]:
    """Yield every valid record, in the order of unit ids.

    Memory: one row group per segment, and the loose records of a running attempt.
    """
    entry = latest(store)
    loose, segments = _valid_files(store, entry)
    singles = [r for r in _read_records(store, loose) if r is not None]
    if len(singles) < len(loose):
        # Some were packed in the meantime; they are in a segment now.
        _, segments = _valid_files(store, entry)
    streams = [unpack(_open(store, path), join_url(store.url, path)) for path in segments]
    yield from merge([*streams, iter(singles)])


def find_record(store: Store, unit_id: str) -> CommitRecord | None:
    """Read the record of one unit of a closed run, and few others; None if there is none.

    Raises:
        DataError: The run is not closed.
    """
    entry = latest(store)
    if not entry.is_closed:
        raise DataError(f"{store.url}: this run is not finished; run it again to go on")
    for path in entry.segments:
        with _open(store, path) as file:
            record = unpack_one(file, unit_id, join_url(store.url, path))
        if record is not None:
            return record
    return None


def done_units(store: Store) -> set[str]:
    """List the ids of all committed units, without opening loose records."""
    loose, segments = _valid_files(store, latest(store))
    return _unit_ids(store, segments).union(map(_unit_id_of, loose))


def iter_field(store: Store, name: str) -> Iterator[Any]:
    """Yield one field (`counts` or `sums`) of every valid record, in no particular order."""
    entry = latest(store)
    loose, segments = _valid_files(store, entry)
    singles = [r for r in _read_records(store, loose) if r is not None]
    if len(singles) < len(loose):
        _, segments = _valid_files(store, entry)
    packed: set[str] = _unit_ids(store, segments) if singles else set()
    for path in segments:
        with _open(store, path) as file:
            for text in unpack_column(file, name, join_url(store.url, path)).to_pylist():
                yield json.loads(text)
    for record in singles:
        if record.unit_id not in packed:
            yield getattr(record, name)


def remove_orphans(store: Store) -> int:
    """Delete the files of a closed run that no record names, and count them.

    They come from workers that died before they committed, or lost the race to commit.
    """
    named = np.sort(
        np.fromiter(
            (_path_hash(file.path) for record in iter_records(store) for file in record.files),
            dtype=np.uint64,
        )
    )

    def is_orphan(path: str) -> bool:
        index = int(np.searchsorted(named, _path_hash(path)))
        return index == len(named) or int(named[index]) != _path_hash(path)

    number = store.remove_orphans()
    for folder in OUTPUTS:
        number += _delete(store, (f.path for f in store.list(folder) if is_orphan(f.path)))
    for folder in (_SEGMENTS, "inflight/"):
        _delete(store, (file.path for file in store.list(folder)))
    parts = set(latest(store).segments)
    _delete(store, (file.path for file in store.list(_COMMITS) if file.path not in parts))
    return number


def _valid_files(store: Store, entry: AttemptEntry) -> tuple[list[str], list[str]]:
    """List the paths of the loose records and of the segments that are valid."""
    segments = list(entry.segments)
    if entry.is_closed or not entry.number:
        return [], segments
    # Loose records first: a record is deleted only after the segment that holds it is written.
    loose = [file.path for file in store.list(f"{_COMMITS}{entry.number:06d}/")]
    segments += [file.path for file in store.list(f"{_SEGMENTS}{entry.number:06d}/")]
    return loose, segments


def _open(store: Store, path: str) -> BinaryIO:
    """Open a file of records, which is deleted only after an entry no longer lists it."""
    try:
        return store.open(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{join_url(store.url, path)}: a segment of commit records is missing; to see what can"
            f" be done: consomme verify {store.url}"
        ) from error


def _unit_ids(store: Store, segments: Sequence[str]) -> set[str]:
    def read(path: str) -> list[str]:
        with _open(store, path) as file:
            column = unpack_column(file, "unit_id", join_url(store.url, path))
            unit_ids: list[str] = column.to_pylist()
            return unit_ids

    ids: set[str] = set()
    for unit_ids in _map_in_threads(read, segments):
        ids.update(unit_ids)
    return ids


def _read_records(store: Store, paths: Sequence[str]) -> Iterator[CommitRecord | None]:
    """Read loose records; None for one that has been packed in the meantime."""

    def read(path: str) -> CommitRecord | None:
        try:
            return CommitRecord.from_json(store.read(path), join_url(store.url, path))
        except FileNotFoundError:
            return None

    return _map_in_threads(read, paths)


def _map_in_threads(function: Callable[[str], _T], paths: Sequence[str]) -> Iterator[_T]:
    """Apply a function to each path; results in order, requests concurrent."""
    if len(paths) < 2:
        yield from map(function, paths)
        return
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for begin in range(0, len(paths), 64 * _READ_THREADS):
            yield from pool.map(function, paths[begin : begin + 64 * _READ_THREADS])


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


def _unit_id_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _path_hash(path: str) -> int:
    return int.from_bytes(sha256(path.encode()).digest()[:8], "big")


def _delete(store: Store, paths: Iterator[str]) -> int:
    number = 0
    while chunk := list(islice(paths, 10_000)):
        store.delete_many(chunk)
        number += len(chunk)
    return number


def reopen(store: Store, damaged: set[str]) -> AttemptEntry:
    """Reopen a closed run without the records of damaged units.

    Returns:
        The new attempt's entry; the other records are sealed in it.
    """
    previous = latest(store)
    kept = [record for record in iter_records(store) if record.unit_id not in damaged]
    segments = [_write_sealed(store, kept)] if kept else []
    _create(store, previous.number + 1, segments, is_closed=False)
    return latest(store)


def reopen_from(
    store: Store, *, without: Collection[str], damaged: set[str], entry: str
) -> AttemptEntry:
    """Reopen a closed run whose ledger itself is damaged, with the records that can be read.

    Args:
        store: The run folder.
        without: Damaged files of records; the records in them are lost.
        damaged: Units whose records are dropped.
        entry: Path of the last entry, if it is damaged; else empty.

    Returns:
        The new attempt's entry.
    """
    if entry:
        number = int(entry.removeprefix(_ATTEMPTS).removesuffix(".json"))
        parts = [file.path for file in store.list(f"{_COMMITS}part-")]
    else:
        last = latest(store)
        number, parts = last.number, list(last.segments)
    records = [
        record
        for path in parts
        if path not in without
        for record in unpack(_open(store, path), join_url(store.url, path))
        if record.unit_id not in damaged
    ]
    segments = [_write_sealed(store, records)] if records else []
    _create(store, number + 1, segments, is_closed=False)
    store.delete_many([*without, *filter(None, [entry])])
    return latest(store)
