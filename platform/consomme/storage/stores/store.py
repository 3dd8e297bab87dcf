"""What a store of files offers, whatever is behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol


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

    def remove_orphans(self, prefix: str = "") -> int:
        """Remove what writers that died left half written below `prefix`, and count it.

        Call it only when nobody writes there: a write under way would fail, and be repeated.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file to read and seek in."""
        ...


def join_url(url: str, *parts: str) -> str:
    """Put path parts behind a URL."""
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(parts)


def is_safe_path(path: str) -> bool:
    """Tell whether a path stays below its root: not absolute, no `..`, no NUL."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
