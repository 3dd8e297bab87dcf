"""Present an object as a seekable file that fetches ranges, with growing read-ahead."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO

READ_AHEAD = 256 * 2**10
"""Bytes of the first fetch: room for a Parquet footer or a few hundred tar headers."""

MAX_READ_AHEAD = 8 * 2**20
"""Upper limit to which fetches grow during sequential reading, in bytes."""

_BUFFER = 64 * 2**10


def open_ranged(fetch: Callable[[int, int], bytes], size: int) -> BinaryIO:
    """Open an object for reading and seeking.

    Args:
        fetch: Takes offset and length; returns that many bytes, or fewer at the end.
        size: Size of the object in bytes.
    """
    return io.BufferedReader(_RangedFile(fetch, size), _BUFFER)


class _RangedFile(io.RawIOBase):
    """Buffers one fetched range, so that a single request covers hundreds of small tar members.

    A fetch that begins at most `READ_AHEAD` bytes after the end of the last one counts as
    sequential and fetches twice as much. Any other fetch starts at `READ_AHEAD` again.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._buffer = b""
        self._buffer_start = 0
        self._read_ahead = READ_AHEAD

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        begin = self._position - self._buffer_start
        if not 0 <= begin < len(self._buffer):
            self._fill(wanted)
            begin = 0
        part = memoryview(self._buffer)[begin : begin + wanted]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        if self._position >= self._size:
            return b""
        data = self._fetch(self._position, self._size - self._position)
        self._position += len(data)
        return data

    def _fill(self, wanted: int) -> None:
        gap = self._position - (self._buffer_start + len(self._buffer))
        is_sequential = bool(self._buffer) and 0 <= gap <= READ_AHEAD
        self._read_ahead = (
            min(2 * self._read_ahead, MAX_READ_AHEAD) if is_sequential else READ_AHEAD
        )
        length = min(max(wanted, self._read_ahead), self._size - self._position)
        self._buffer = self._fetch(self._position, length)
        self._buffer_start = self._position
