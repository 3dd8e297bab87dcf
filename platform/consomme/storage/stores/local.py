"""Files on a local or mounted file system.

A network file system can be away like an object store (NFS: a stale handle, a time-out), and is
waited for in the same way. A full or broken disk is not: nobody knows whether it heals.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from consomme.base.errors import ClusterError, ConsommeError, RecipeError, StorageAwayError
from consomme.storage.stores.regular import UnsafeFileError, open_inside, open_regular
from consomme.storage.stores.retries import RetryPolicy, retry
from consomme.storage.stores.store import BROKEN_LINK, FileInfo, is_safe_path

T = TypeVar("T")

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
        target = self._target(path)

        def read() -> bytes:
            with self._open(target) as file:
                if offset:
                    file.seek(offset)
                return file.read() if length is None else file.read(length)

        return _patiently(target, read)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically; see `Store.write`."""
        target = self._target(path)

        def write() -> None:
            temporary = self._write_temporary(target, data)
            try:
                os.replace(temporary, target)
            # No partial file is left behind, even after Ctrl-C; the error is raised again.
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

        _patiently(target, write, is_write=True)

    def create(self, path: str, data: bytes) -> bool:
        """Create a file atomically; see `Store.create`.

        By a hard link or, on file systems without them, by a rename that replaces nothing.
        """
        target = self._target(path)
        earlier: set[tuple[int, int, int]] = set()
        """Files that earlier tries may have put there, before an error hid their success."""

        def create() -> bool:
            if target.exists():
                return _identity(target) in earlier
            temporary = self._write_temporary(target, data)
            try:
                earlier.add(_identity(temporary))
                return _link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

        return _patiently(target, create, is_write=True)

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
        target = self._target(path)

        def is_file() -> bool:
            try:
                return stat.S_ISREG(target.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

        # `Path.is_file` would answer False as well where the file system does not answer.
        return _patiently(target, is_file)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        target = self._target(path)
        return _patiently(target, lambda: target.stat().st_size)

    def info(self, path: str) -> FileInfo:
        """Return size, time and version of a file."""
        target = self._target(path)

        def info() -> FileInfo:
            status = target.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
            return _of_status(path, status)

        return _patiently(target, info)

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        target = self._target(path)
        _patiently(target, lambda: target.unlink(missing_ok=True), is_write=True)

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
        return _patiently(target, lambda: self._open(target))

    @staticmethod
    def _open(target: Path) -> BinaryIO:
        try:
            return open_regular(target)
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{target}: {error}; remove it, or name another") from error

    def read_inside(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file that data names; see `Store.read_inside`."""

        def read() -> bytes:
            with open_inside(self.root, path) as file:
                if offset:
                    file.seek(offset)
                return file.read() if length is None else file.read(length)

        return _patiently(self._target(path), read, is_named_by_data=True)

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

        def scan() -> list[tuple[str, os.DirEntry[str]]]:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                with os.scandir(Path(self.root) / folder) as items:
                    # A folder sorts with its slash, which puts whole paths into byte order.
                    return [(folder + item.name + "/" * _is_folder(item), item) for item in items]
            return []

        entries = _patiently(Path(self.root) / folder, scan)
        return sorted(entries, key=lambda pair: os.fsencode(pair[0]))


AWAY_ERRORS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        # FUSE: the process that served the folder is gone, and may be started again.
        errno.ENOTCONN,
        errno.EREMOTEIO,
        # NFS: the handle of a server that was restarted, or of a file that was replaced.
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Errors of a network file system that is away, and may come back."""

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota is used up; make room",
    errno.EIO: "the disk failed; check it",
}
"""Errors caused by the machine rather than the recipe, with what to do about them."""

_REFUSALS = {
    errno.EACCES: "may not be written to by this user",
    errno.EPERM: "may not be written to by this user",
    errno.EROFS: "lies on a file system that is mounted read-only",
    errno.ENOENT: "lies in a folder that is gone, or cannot be made",
    errno.ENOTDIR: "lies below a file, not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EEXIST: "needs a folder where there is a file",
    errno.ENAMETOOLONG: "has too long a name for this file system",
    errno.ELOOP: "lies behind symbolic links that point at each other",
    errno.EFBIG: "is larger than this file system, or the process's limit, allows",
    errno.EINVAL: "is not possible on this file system",
}
"""Errors of a place that cannot be written to."""

_NETWORK_TYPES = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "beegfs", "gpfs", "afs")


@contextlib.contextmanager
def away_errors() -> Iterator[None]:
    """Turn errors of a network file system that went away under an open file into our own.

    A store waits for such a file system when it opens, reads or writes whole files; who reads from
    a file that was opened earlier meets the error itself.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in AWAY_ERRORS:
            raise
        raise StorageAwayError(
            f"{error.filename or 'an open file'}: the network file system is away ({error}); run"
            " the same command again later, it resumes where it stopped"
        ) from error


def explained(error: OSError) -> ConsommeError | None:
    """Explain an error of a file that did not go through a store; None if it may be our bug."""
    if error.filename is None or error.errno is None:
        return None
    if error.errno in AWAY_ERRORS:
        return StorageAwayError(f"{error.filename}: the network file system is away ({error})")
    if error.errno in _DISK_ERRORS:
        return ClusterError(f"{error.filename}: {_DISK_ERRORS[error.errno]} ({error})")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RecipeError(
            f"{error.filename} may not be used by this user ({error}); change its permissions or"
            " its owner, or have TMPDIR and HOME name folders that this user may write to"
        )
    return None


def _patiently(
    target: Path, call: Callable[[], T], *, is_write: bool = False, is_named_by_data: bool = False
) -> T:
    """Call, and wait for a network file system that is away.

    Args:
        target: The file, for messages.
        call: What may fail.
        is_write: Whether it writes.
        is_named_by_data: Whether a record names the file: then a file that cannot be read costs its
            sample, and the error is raised as it is.

    Raises:
        ClusterError: The disk is full or failed, or a network file system stays away.
        RecipeError: The place cannot be written to.
    """

    def classify(error: Exception) -> Exception | None:
        if not isinstance(error, OSError):
            return error
        if error.errno in AWAY_ERRORS:
            return None
        # A soft mount reports a server that is away as an I/O error; a disk of its own is broken.
        if error.errno == errno.EIO and _is_on_network(target):
            return None
        if error.errno in _DISK_ERRORS:
            return ClusterError(
                f"{target}: {_DISK_ERRORS[error.errno]}, then run the same command again to resume"
                f" ({error})"
            )
        if is_named_by_data:
            return error
        if error.errno == errno.ELOOP or (is_write and error.errno in _REFUSALS):
            return RecipeError(
                f"{target} {_REFUSALS[error.errno]} ({error}); name another place"
                + (", as in root=FOLDER, or change its permissions" if is_write else "")
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return RecipeError(
                f"{target} may not be read by this user ({error}); change its permissions, or leave"
                " it out"
            )
        return error

    return retry(call, str(target), classify, _POLICY)


_POLICY = RetryPolicy()


def _identity(path: Path) -> tuple[int, int, int]:
    """Tell a file from every other one; the time, because numbers of deleted files are reused."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _is_on_network(target: Path) -> bool:
    """Whether a path lies on a mount of a network file system, by Linux's table of mounts."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields = line.split()
            point = fields[4].replace("\\040", " ")
            is_above = target.as_posix().startswith(point.rstrip("/") + "/")
            if is_above and len(point) >= len(best):
                best, kind = point, fields[fields.index("-") + 1]
    return kind.startswith(_NETWORK_TYPES)


_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def _link(temporary: Path, target: Path) -> bool:
    """Give a complete file its name, unless the name is taken; both in one step."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_to_free(temporary, target, error)
    return True


def _rename_to_free(temporary: Path, target: Path, cause: OSError) -> bool:
    """Rename a file to a name that must be free, by Linux's `renameat2`.

    Raises:
        RecipeError: The file system has neither this nor hard links.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    code = errno.ENOSYS
    if rename is not None:
        names = os.fsencode(temporary), os.fsencode(target)
        if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
            return True
        code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code in (*_NO_HARD_LINKS, errno.ENOTSUP):
        raise RecipeError(
            f"{target.parent}: this file system offers neither hard links ({cause.strerror}) nor"
            f" renames that replace nothing ({os.strerror(code)}), so two drivers could commit the"
            " same unit; keep runs on another file system, or in a bucket (root=s3://…)"
        ) from cause
    raise OSError(code, os.strerror(code), str(target))


def _folder_of(prefix: str) -> str:
    return prefix[: prefix.rfind("/") + 1]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one that does not hold the link.

    Raises:
        RecipeError: The link leads in a circle, so that a listing would not end.
    """
    if not entry.is_symlink():
        return entry.is_dir()
    try:
        if not entry.is_dir():
            return False
        target = entry.stat()
        holders = Path(entry.path).absolute().parents
        is_circle = any(os.path.samestat(target, holder.stat()) for holder in holders)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        # A link to itself: no folder, and whoever opens it is told.
        return False
    if is_circle:
        raise RecipeError(
            f"{entry.path}: this link to {os.readlink(entry.path)} leads in a circle, so a listing"
            " would never end; remove it, or name the files to read, as in FOLDER/*.tar"
        )
    return True


def _info(path: str, entry: os.DirEntry[str]) -> Iterator[FileInfo]:
    """Yield the size and time of a file, unless it was deleted in the meantime.

    A link to nothing is yielded as such: a picture may be one, and costs its sample. Hidden ones,
    as editors use for locks, are left out.
    """
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        if entry.is_symlink() and not entry.name.startswith("."):
            yield FileInfo(path=path, size=0, version=BROKEN_LINK)
        return
    yield _of_status(path, status)


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
