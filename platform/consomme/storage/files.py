"""Files by name, wherever they are: the one place that knows local disks from object stores.

A store is rooted at a URL and takes relative paths with `/`. It promises only what both a file
system and an object store can keep: whole-file writes that appear in one go, creation that one of
many wins, ranged reads, and listings in byte order.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import consomme
from consomme.base.errors import ClusterError, RecipeError

PACKAGE_SCHEME = "package://"
_BUCKET_SCHEMES = ("s3", "gs")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """One file in a listing."""

    path: str
    """Relative to the store; a folder ends with a slash, and only `list_level` yields any."""

    size: int
    """Bytes."""

    modified: float = 0.0
    """When it was last written, in seconds since 1970 by the storage's own clock."""


class Store(Protocol):
    """What the rest of consomme may do with files. Stores can be pickled and sent to workers."""

    @property
    def url(self) -> str:
        """Where the store is rooted; `open_store(store.url)` opens it again."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes from `offset`, all of them or at most `length`.

        Raises:
            FileNotFoundError: There is no such file.
        """
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file in one go: a reader sees the old bytes or the new ones."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Make a new file in one go. Of many that try, one gets True; the others change nothing."""
        ...

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield the files, at any depth, whose path begins with `prefix`, in byte order.

        Only paths behind `after` come; a listing that broke off goes on from its last path.
        """
        ...

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield files and folders whose path begins with `prefix` and has no `/` behind it.

        Folders end with a slash; all come in byte order. What is in the folders is not looked at.
        """
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        ...

    def size(self, path: str) -> int:
        """Return a file's bytes; FileNotFoundError if there is none."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        ...

    def delete_many(self, paths: Iterable[str]) -> None:
        """Remove files, many in one request where the storage can."""
        ...

    def sweep(self, prefix: str = "") -> int:
        """Remove what writers that died left half written below `prefix`, and count it.

        Call it only when nobody writes there: a write under way would fail, and be repeated.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file to read and seek in."""
        ...


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

    def sweep(self, prefix: str = "") -> int:
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


def open_store(url: str) -> Store:
    """Open the store rooted at a URL. Nothing is read or connected to yet.

    Args:
        url: A local folder (relative ones count from the current directory, `~` is the home),
            `s3://bucket/folder`, `gs://bucket/folder`, or `package://x/y` for a folder shipped
            inside the consomme package.

    Raises:
        RecipeError: Nothing here can open such a URL.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(os.path.abspath(os.path.expanduser(url)))
    if scheme == "file":
        return open_store(rest)
    if scheme == "package":
        inside = rest.strip("/")
        if inside and not is_safe_path(inside):
            raise RecipeError(f"{url}: leads out of the consomme package")
        return LocalStore(str(Path(consomme.__path__[0]) / inside), PACKAGE_SCHEME + inside)
    if scheme in _BUCKET_SCHEMES:
        return _open_bucket(url, scheme, rest)
    raise RecipeError(
        f"{url}: found {scheme}://, expected a local path, file://, s3://, gs:// or package://"
    )


def split_url(url: str) -> tuple[Store, str]:
    """Open the store that holds a file.

    Returns:
        A store rooted at the file's folder, and the file's name in it.

    Raises:
        RecipeError: The URL names no file, or nothing here can open it.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    folder, slash, name = rest.rpartition("/")
    if not name or name in (".", ".."):
        raise RecipeError(f"{url!r}: found a folder, expected a file")
    if scheme in _BUCKET_SCHEMES and not slash:
        raise RecipeError(f"{url!r}: found a bucket, expected a file in one")
    if slash and not folder:
        folder = "/"
    return open_store(f"{scheme}{separator}{folder}" if separator else folder or "."), name


def absolute_url(url: str) -> str:
    """Make a URL mean the same in every process: local paths become absolute."""
    return open_store(url).url


def read_url(url: str) -> bytes:
    """Return the bytes of one file by its URL."""
    store, path = split_url(url)
    return store.read(path)


def join_url(url: str, *parts: str) -> str:
    """Put path parts behind a URL."""
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(parts)


def is_safe_path(path: str) -> bool:
    """Tell whether a path stays below its root: not absolute, no `..`, no NUL."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


def _open_bucket(url: str, scheme: str, rest: str) -> Store:
    bucket, _, folder = rest.partition("/")
    folder = folder.rstrip("/")
    if not bucket or (folder and not is_safe_path(folder)):
        raise RecipeError(f"{url}: expected {scheme}://bucket/folder, without '..' or '//'")
    # These take a second to import, and most commands run on local files.
    if scheme == "s3":
        from consomme.storage.object_store import S3Store

        return S3Store(bucket, folder)
    from consomme.storage.gcs import GcsStore

    return GcsStore(bucket, folder)


def _folder_of(prefix: str) -> str:
    return prefix[: prefix.rfind("/") + 1]


def _info(path: str, entry: os.DirEntry[str]) -> Iterator[FileInfo]:
    """Describe a file, unless it was removed since it was found."""
    with contextlib.suppress(FileNotFoundError):
        status = entry.stat()
        yield FileInfo(path=path, size=status.st_size, modified=status.st_mtime)
