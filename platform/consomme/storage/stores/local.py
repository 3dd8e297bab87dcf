"""Files on a local or mounted file system."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from consomme.base.errors import ClusterError
from consomme.storage.stores.regular import UnsafeFileError, open_inside, open_regular
from consomme.storage.stores.store import FileInfo, is_safe_path

_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class LocalStore:
    """A folder. Files are written under a temporary name, synced to disk, and renamed."""

    root: str
    """The folder; created on the first write."""

    url_root: str = ""
    """The URL that the store was opened by, if it is not the folder itself."""

    @property
    def url(self) -> str:
        """The folder, or the URL that the store was opened by."""
        return self.url_root or self.root

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file; see `Store.read`."""
        with self.open(path) as file:
            if offset:
                file.seek(offset)
            return file.read() if length is None else file.read(length)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically; see `Store.write`."""
        target = self._target(path)
        with _explain_disk_errors(target):
            temporary = self._write_temporary(target, data)
            try:
                os.replace(temporary, target)
            # No partial file is left behind, even after Ctrl-C; the error is raised again.
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def create(self, path: str, data: bytes) -> bool:
        """Create a file atomically; see `Store.create`. The folder must allow hard links."""
        target = self._target(path)
        if target.exists():
            return False
        with _explain_disk_errors(target):
            temporary = self._write_temporary(target, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield files in byte order; see `Store.list`. Memory: the entries of one folder."""
        after_bytes = os.fsencode(after)
        for file in self._walk(_folder_of(prefix), prefix, temporary=False):
            if os.fsencode(file.path) > after_bytes:
                yield file

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield files and folders of one level; see `Store.list_level`."""
        folder = _folder_of(prefix)
        for path, entry in self._scan(folder):
            if path.endswith("/"):
                if path.startswith(prefix):
                    yield FileInfo(path=path, size=0)
            elif path.startswith(prefix) and not entry.name.startswith(_TEMPORARY):
                yield from _info(path, entry)

    def exists(self, path: str) -> bool:
        """Check whether a file exists."""
        return self._target(path).is_file()

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return self._target(path).stat().st_size

    def info(self, path: str) -> FileInfo:
        """Return size, time and version of a file."""
        target = self._target(path)
        if not target.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
        return _of_status(path, target.stat())

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        self._target(path).unlink(missing_ok=True)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Delete files one by one."""
        for path in paths:
            self.delete(path)

    def remove_orphans(self, prefix: str = "") -> int:
        """Delete temporary files that were never renamed; see `Store.remove_orphans`."""
        number = 0
        for file in self._walk(_folder_of(prefix), prefix, temporary=True):
            self.delete(file.path)
            number += 1
        return number

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading and seeking."""
        target = self._target(path)
        try:
            return open_regular(target)
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{target}: {error}; remove it, or name another") from error

    def read_inside(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file that data names; see `Store.read_inside`."""
        self._target(path)
        with open_inside(self.root, path) as file:
            if offset:
                file.seek(offset)
            return file.read() if length is None else file.read(length)

    def _target(self, path: str) -> Path:
        if not is_safe_path(path):
            raise ValueError(f"{path!r} leads out of {self.url}; a store takes relative paths only")
        return Path(self.root) / path

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        # As in `write`: clean up after any error, then raise it again.
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _walk(self, folder: str, prefix: str, *, temporary: bool) -> Iterator[FileInfo]:
        """Walk the tree in byte order: temporary files only, or all others."""
        for path, entry in self._scan(folder):
            if not (path.startswith(prefix) or prefix.startswith(path)):
                continue
            if path.endswith("/"):
                yield from self._walk(path, prefix, temporary=temporary)
            elif entry.name.startswith(_TEMPORARY) == temporary and path.startswith(prefix):
                yield from _info(path, entry)

    def _scan(self, folder: str) -> Sequence[tuple[str, os.DirEntry[str]]]:
        """List one folder in byte order: paths relative to the root, folders with a slash."""
        entries: list[tuple[str, os.DirEntry[str]]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(Path(self.root) / folder) as items:
                # A folder sorts with its slash, which puts whole paths into byte order.
                entries = [(folder + item.name + "/" * item.is_dir(), item) for item in items]
        return sorted(entries, key=lambda pair: os.fsencode(pair[0]))


_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota is used up; make room",
    errno.EIO: "the disk failed; check it",
    errno.ESTALE: "the network file system lost the folder; check it",
    errno.ETIMEDOUT: "the network file system does not answer; check it",
}
"""Errors caused by the machine rather than the recipe, with what to do about them."""


@contextlib.contextmanager
def _explain_disk_errors(target: Path) -> Iterator[None]:
    """Turn errors of a full or failing disk into a ClusterError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise ClusterError(
            f"{target}: {_DISK_ERRORS[error.errno]}, then run the same command again to resume"
            f" ({error})"
        ) from error


def _folder_of(prefix: str) -> str:
    return prefix[: prefix.rfind("/") + 1]


def _info(path: str, entry: os.DirEntry[str]) -> Iterator[FileInfo]:
    """Yield the size and time of a file, unless it was deleted in the meantime."""
    with contextlib.suppress(FileNotFoundError):
        yield _of_status(path, entry.stat())


def _of_status(path: str, status: os.stat_result) -> FileInfo:
    # The version has neither the inode nor the time of its last change: both change with owner,
    # mode and links, and with every copy and restore. The time of the last write has, because
    # `cp -p` sets the other one back.
    return FileInfo(
        path=path,
        size=status.st_size,
        modified=max(status.st_mtime, status.st_ctime),
        version=str(status.st_mtime_ns),
    )
