"""Read compressed files as what they hold, without unpacking them to memory or disk.

A compressed file cannot be entered in the middle. So a process keeps the last ones open: the next
unit usually begins where the one before ended, and is read on from there.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from consomme.base.sample import printable
from consomme.storage.stores.store import Store, join_url

_CHUNK = 1 << 20
_HISTORY = 4 << 20
"""Bytes that are kept of what was read, since readers look back a little."""

_MAX_OPEN = 2
"""Files that a process keeps open."""

MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)
"""First bytes of compressed files."""

_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException, ValueError)


def compression_of(start: bytes) -> str:
    """Return how a file is compressed, by its first bytes; empty if it is not."""
    return next((name for magic, name in MAGIC if start.startswith(magic)), "")


class Inflated(io.RawIOBase):
    """What a compressed file holds; damage ends it, and `problem` says so."""

    def __init__(self, open_file: Callable[[], BinaryIO], compression: str) -> None:
        """Open it.

        Args:
            open_file: Opens the compressed file, from its start.
            compression: One of those in `MAGIC`.
        """
        super().__init__()
        self._open_file, self._compression = open_file, compression
        self._position = 0
        self.problem = ""
        self._restart()

    def _restart(self) -> None:
        self._file = self._open_file()
        self._stream = _stream(self._file, self._compression)
        self._history, self._end = bytearray(), 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is; backwards by more than a little it starts again."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        if whence == io.SEEK_END:
            while self._pull():
                pass
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there is something."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return bytes from the position on; fewer only at the end."""
        if self._position < self._end - len(self._history):
            self._restart()
        while self._end <= self._position and self._pull():
            pass
        found = bytearray()
        while size < 0 or len(found) < size:
            at = self._position - (self._end - len(self._history))
            piece = self._history[at : at + size - len(found) if size >= 0 else None]
            found += piece
            self._position += len(piece)
            if (size < 0 or len(found) < size) and not self._pull():
                break
        return bytes(found)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _pull(self) -> bool:
        """Unpack some more; false at the end."""
        try:
            # `read` would lose what it had unpacked when it comes to the damage.
            data = getattr(self._stream, "read1", self._stream.read)(_CHUNK)
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                # The storage failed, not the file.
                raise
            self.problem = (
                f"the {self._compression} file is damaged after {self._end:,} bytes of content:"
                f" {printable(str(error))}"
            )
            return False
        self._end += len(data)
        self._history += data
        if len(self._history) > 2 * _HISTORY:
            del self._history[:-_HISTORY]
        return bool(data)


def _stream(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == "zstd":
        return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
    makers: dict[str, Any] = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    return cast(BinaryIO, makers[compression](file, "rb"))


_open: dict[tuple[str, str], Inflated] = {}
_lock = threading.Lock()


@contextmanager
def inflated(store: Store, path: str, compression: str) -> Iterator[Inflated]:
    """Open what a compressed file holds, if possible where this process was in it.

    Args:
        store: The file's folder.
        path: The file.
        compression: One of those in `MAGIC`.
    """
    key = (join_url(store.url, path), store.info(path).version)
    with _lock:
        file = _open.pop(key, None)
    if file is None:
        file = Inflated(lambda: store.open(path), compression)
    yield file
    # After an exception it is not kept.
    with _lock:
        _open[key] = file
        while len(_open) > _MAX_OPEN:
            _open.pop(next(iter(_open))).close()
