"""An object as a file: seeking costs nothing, reading fetches ranges, reading on fetches more."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO

READ_AHEAD = 256 * 2**10
"""Bytes of the first fetch; a Parquet footer or some hundred tar headers fit."""

MAX_READ_AHEAD = 8 * 2**20
"""Fetches grow up to here as long as reading goes on forward."""

_BUFFER = 64 * 2**10


def open_ranged(fetch: Callable[[int, int], bytes], size: int) -> BinaryIO:
    """Open an object to read and seek in.

    Args:
        fetch: Returns the bytes from an offset, as many as asked for or up to the end.
        size: The object's bytes.
    """
    return io.BufferedReader(_RangedFile(fetch, size), _BUFFER)


class _RangedFile(io.RawIOBase):
    """Holds one fetched range. Walking over small tar members takes one request for hundreds.

    A fetch that begins where the last one ended, or less than one `READ_AHEAD` behind it, is taken
    for reading on: it asks for twice as much. Anything else starts small again.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._held = b""
        self._held_from = 0
        self._ahead = READ_AHEAD

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
        begin = self._position - self._held_from
        if not 0 <= begin < len(self._held):
            self._fill(wanted)
            begin = 0
        part = memoryview(self._held)[begin : begin + wanted]
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
        gap = self._position - (self._held_from + len(self._held))
        is_reading_on = bool(self._held) and 0 <= gap <= READ_AHEAD
        self._ahead = min(2 * self._ahead, MAX_READ_AHEAD) if is_reading_on else READ_AHEAD
        length = min(max(wanted, self._ahead), self._size - self._position)
        self._held = self._fetch(self._position, length)
        self._held_from = self._position
