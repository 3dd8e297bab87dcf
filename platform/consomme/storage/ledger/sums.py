"""Sizes and checksums of the files of a run that no commit record names.

They are taken where a file is written (`sum_of`, `put_file`); what was not taken there is read once
when the run ends. Files that may change afterwards are left out: they carry their own checksum, or
say only how far a run has come.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from consomme.base.errors import DataError
from consomme.base.manifest import FileSum, LedgerSum
from consomme.storage.ledger.commits import CommitRecord
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.store import FileInfo, Store

REPORT = "report.html"

LEFT_OUT = ("manifest.json", "progress.json", "failure.json", REPORT)
"""Files that no manifest names: itself, the state of a run that is not done, and the page, which
may be drawn again at any time."""

NOTES = "inflight/"
"""Folder of notes about units in flight; nobody reads them once a run is done."""

_THREADS = 16
_CHUNK_BYTES = 16 * 2**20


def sum_of(data: bytes) -> FileSum:
    """Return size and checksum of some bytes."""
    return FileSum(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_sum(store: Store, path: str) -> FileSum:
    """Read a file, a piece at a time, and return its size and checksum."""
    digest, size = hashlib.sha256(), 0
    with store.open(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileSum(num_bytes=size, sha256=digest.hexdigest())


def put_file(store: Store, path: str, file: Path) -> FileSum:
    """Copy a local file into a store; its bytes are read once, for storage and checksum."""
    if not file.stat().st_size:
        store.write(path, b"")
        return sum_of(b"")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # A store slices and writes it as it would bytes, and only what it sends is in memory.
        store.write(path, cast(bytes, data))
        return FileSum(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def collect(
    store: Store, known: Mapping[str, FileSum], without: Collection[str] = ()
) -> dict[str, FileSum]:
    """Return the sums of all files of a run folder, by path.

    Args:
        store: The run folder.
        known: Sums that were taken when the files were written; the files are not read again.
        without: Folders whose files commit records name, each with a slash at its end.

    Raises:
        DataError: A file is gone, or has another size than the bytes that were written.
    """
    found = {
        file.path: file for file in _list(store, (NOTES, *without)) if file.path not in LEFT_OUT
    }
    for path, one in known.items():
        size = found[path].size if path in found else None
        if size != one.num_bytes:
            raise DataError(
                f"{store.url}/{path}: wrote {one.num_bytes:,} bytes, found"
                f" {'nothing' if size is None else f'{size:,} bytes'} at the end of the run;"
                " something else writes or deletes there. Run the same command again"
            )
    unknown = [path for path in found if path not in known]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = dict(
            zip(unknown, pool.map(lambda path: read_sum(store, path), unknown), strict=True)
        )
    return {path: known.get(path) or read[path] for path in sorted(found)}


def _list(store: Store, without: Collection[str]) -> Iterator[FileInfo]:
    """List the files of a run folder, without folders that may hold millions."""
    for entry in store.list_level():
        if not entry.path.endswith("/"):
            yield entry
        elif entry.path not in without:
            yield from list_parallel(store, entry.path)


class LedgerSummer:
    """Adds up the files that commit records name, in the order of unit ids.

    Rejects are left out: they name places, so they differ where the same data lie elsewhere.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._num_units = self._num_files = self._num_bytes = 0

    def add(self, record: CommitRecord) -> None:
        """Add the files of one record."""
        self._num_units += 1
        for file in record.files:
            if file.kind != "rejects":
                self._num_files += 1
                self._num_bytes += file.num_bytes
                self._digest.update(f"{file.path}\0{file.sha256}\n".encode())

    def total(self) -> LedgerSum:
        """Return the sum over all records so far."""
        return LedgerSum(
            units=self._num_units,
            files=self._num_files,
            num_bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
        )


def ledger_sum(records: Iterable[CommitRecord]) -> LedgerSum:
    """Add up the files that all records of a run name."""
    summer = LedgerSummer()
    for record in records:
        summer.add(record)
    return summer.total()
