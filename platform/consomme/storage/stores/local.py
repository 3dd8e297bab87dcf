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
from consomme.storage.stores.store import FileInfo, is_safe_path

_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class LocalStore:
    """A folder. Writes go to a temporary name, reach the disk, and are renamed."""

    root: str
    """The folder; it is made when something is first written."""

    url_root: str = ""
    """The URL the store was opened by, if that is not the folder itself."""

    @property
    def url(self) -> str:
        """The folder, or the URL that led to it."""
        return self.url_root or self.root

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes; see `Store.read`."""
        with self.open(path) as file:
            if offset:
                file.seek(offset)
            return file.read() if length is None else file.read(length)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file in one go; see `Store.write`."""
        target = self._target(path)
        with _explained(target):
            temporary = self._write_temporary(target, data)
            try:
                os.replace(temporary, target)
            # Whatever it was, Ctrl-C included, nothing half written stays; it is raised again.
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def create(self, path: str, data: bytes) -> bool:
        """Make a new file in one go; see `Store.create`. The folder must allow hard links."""
        target = self._target(path)
        if target.exists():
            return False
        with _explained(target):
            temporary = self._write_temporary(target, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield files in byte order; see `Store.list`. Memory is one folder's entries."""
        behind = os.fsencode(after)
        for file in self._walk(_folder_of(prefix), prefix, temporary=False):
            if os.fsencode(file.path) > behind:
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
        """Tell whether there is such a file."""
        return self._target(path).is_file()

    def size(self, path: str) -> int:
        """Return a file's bytes."""
        return self._target(path).stat().st_size

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        self._target(path).unlink(missing_ok=True)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Remove files one by one."""
        for path in paths:
            self.delete(path)

    def remove_orphans(self, prefix: str = "") -> int:
        """Remove temporary files that were never renamed; see `Store.sweep`."""
        number = 0
        for file in self._walk(_folder_of(prefix), prefix, temporary=True):
            self.delete(file.path)
            number += 1
        return number

    def open(self, path: str) -> BinaryIO:
        """Open a file to read and seek in."""
        return self._target(path).open("rb")

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
        # As above: tidied up after any error, then raised.
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _walk(self, folder: str, prefix: str, *, temporary: bool) -> Iterator[FileInfo]:
        """Walk the tree in byte order: temporary files only, or all but them."""
        for path, entry in self._scan(folder):
            if not (path.startswith(prefix) or prefix.startswith(path)):
                continue
            if path.endswith("/"):
                yield from self._walk(path, prefix, temporary=temporary)
            elif entry.name.startswith(_TEMPORARY) == temporary and path.startswith(prefix):
                yield from _info(path, entry)

    def _scan(self, folder: str) -> Sequence[tuple[str, os.DirEntry[str]]]:
        """List one folder with paths from the root, in byte order; folders end with a slash."""
        entries: list[tuple[str, os.DirEntry[str]]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(Path(self.root) / folder) as found:
                # A folder sorts as its name with a slash, so that whole paths come in byte order.
                entries = [(folder + item.name + "/" * item.is_dir(), item) for item in found]
        return sorted(entries, key=lambda pair: os.fsencode(pair[0]))


_PASSING = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota is used up; make room",
    errno.EIO: "the disk failed; see to it",
    errno.ESTALE: "the network file system lost the folder; see to it",
    errno.ETIMEDOUT: "the network file system does not answer; see to it",
}
"""What is no fault of ours or the recipe's, and passes."""


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Say what to do about a disk that is full or gone."""
    try:
        yield
    except OSError as error:
        if error.errno not in _PASSING:
            raise
        raise ClusterError(
            f"{target}: {_PASSING[error.errno]}, then run the same command again to go on ({error})"
        ) from error


def _folder_of(prefix: str) -> str:
    return prefix[: prefix.rfind("/") + 1]


def _info(path: str, entry: os.DirEntry[str]) -> Iterator[FileInfo]:
    """Describe a file, unless it was removed since it was found."""
    with contextlib.suppress(FileNotFoundError):
        status = entry.stat()
        yield FileInfo(path=path, size=status.st_size, modified=status.st_mtime)
