"""Hold one range of a file in memory and read it from there, in the calling thread only.

Arrow would fetch a row group with threads of its own (`pre_buffer`). They need the interpreter, to
read the file and to let go of it, which may come after the reading has returned; if the interpreter
ends just then, the process aborts. A range that the caller has fetched before costs as few
requests, and no thread is left that knows the file.
"""

import io
from typing import Any, BinaryIO


class HeldRange(io.RawIOBase):
    """A file of which one range at a time lies in memory; everything else is read through."""

    def __init__(self, file: BinaryIO) -> None:
        """Hold nothing yet.

        Args:
            file: Stays open when this is closed.
        """
        super().__init__()
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._position = 0
        self._held = memoryview(b"")
        self._start = 0

    def hold(self, start: int, end: int) -> None:
        """Read a range, instead of the one held so far."""
        self.release()
        self._file.seek(start)
        self._held, self._start = memoryview(self._file.read(end - start)), start

    def release(self) -> None:
        """Hold nothing."""
        self._held, self._start = memoryview(b""), 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> Any:
        """Return bytes from the position on; those that are held are not copied."""
        end = self._size if size < 0 else min(self._position + size, self._size)
        begin = self._position
        self._position = max(begin, end)
        if self._start <= begin and end <= self._start + len(self._held):
            return self._held[begin - self._start : end - self._start]
        self._file.seek(begin)
        return self._file.read(max(0, end - begin))
