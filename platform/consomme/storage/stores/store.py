"""The protocol of all storage backends, and helpers for paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

BROKEN_LINK = "a link to nothing"
"""Version of what cannot be opened, because it is a link to nothing or to itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """One file in a listing."""

    path: str
    """Relative to the store; a folder ends with a slash and is yielded by `list_level` only."""

    size: int
    """Size in bytes."""

    modified: float = 0.0
    """Time of the last write, in seconds since 1970 by the storage's clock."""

    version: str = ""
    """What the storage says of the file's content: it differs after every write of other bytes. S3:
    the ETag; GCS: the generation; local: the time of the last write in nanoseconds, or
    `BROKEN_LINK`."""


class Store(Protocol):
    """All operations on files that consomme uses. Stores are picklable."""

    @property
    def url(self) -> str:
        """Root of the store; `open_store(store.url)` opens it again."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file from `offset` on, at most `length` of them.

        Raises:
            FileNotFoundError: There is no such file.
        """
        ...

    def read_inside(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes as `read` does, of a file that data names and nobody vouches for.

        Raises:
            UnsafeFileError: It is no regular file, or a link leads out of the store.
            FileNotFoundError: There is no such file.
        """
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically: a reader sees the old bytes or the new ones."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Create a file atomically. Of several callers one gets True; the others change nothing."""
        ...

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield the files, at any depth, whose path begins with `prefix`, in byte order.

        Only paths greater than `after` are yielded, so a broken listing resumes at its last path.
        """
        ...

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield files and folders whose path begins with `prefix` and has no `/` after it.

        Folders end with a slash and are not listed recursively. Everything is in byte order.
        """
        ...

    def exists(self, path: str) -> bool:
        """Check whether a file exists."""
        ...

    def size(self, path: str) -> int:
        """Return the size of a file in bytes; FileNotFoundError if it does not exist."""
        ...

    def info(self, path: str) -> FileInfo:
        """Return what a listing would say of one file; FileNotFoundError if it does not exist."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; no error if it does not exist."""
        ...

    def delete_many(self, paths: Iterable[str]) -> None:
        """Delete files, many in one request where the storage supports it."""
        ...

    def remove_orphans(self, prefix: str = "") -> int:
        """Delete unfinished writes of dead processes below `prefix`, and count them.

        Call it only when nothing writes there: a write in progress would fail and be retried.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        ...


def join_url(url: str, *parts: str) -> str:
    """Append path parts to a URL."""
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(parts)


def is_safe_path(path: str) -> bool:
    """Check that a path stays below its root: not absolute, no `..`, no NUL."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
