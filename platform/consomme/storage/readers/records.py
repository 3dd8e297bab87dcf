"""Read JSON lines and LLaVA conversation files: text in one file, images in separate files.

A record names its image by a path relative to the file. LLaVA's format is one long JSON array; its
elements are found by scanning brackets, so that a range can be read without the rest. Both are
scanned in chunks, so files and lines of any length can be planned.
"""

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from consomme.base.errors import DataError
from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow
from consomme.storage.readers.text import MAX_RECORD_BYTES, load_record, refuse_encoded

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_CHUNK_BYTES = 1 << 22
_TOKEN = re.compile(rb'["\[\]{},]')
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def plan_lines(file: BinaryIO, shard: str = "the file") -> Iterator[tuple[int, int]]:
    """Yield offset and end of each line that is not blank.

    For a line that is too long, the range ends one byte after the limit.

    Args:
        file: The file.
        shard: URL of the file, for messages.

    Raises:
        DataError: The file is compressed or UTF-16.
    """
    start = file.read(8)
    refuse_encoded(start, shard, "plain JSON lines")
    offset = len(_BOM) if start.startswith(_BOM) else 0
    file.seek(offset)
    for begin, end, line in _lines(file, offset):
        if _is_row(line):
            yield begin, min(end, begin + MAX_RECORD_BYTES + 1)


def plan_array(file: BinaryIO, shard: str) -> Iterator[tuple[int, int]]:
    """Yield offset and end of each element of a JSON array.

    For an element that is too long, the range ends one byte after the limit.

    Raises:
        DataError: The file is not one complete array.
    """
    start = file.read(4096)
    refuse_encoded(start, shard, "plain JSON")
    begin = len(start) - len(start.removeprefix(_BOM).lstrip(_BLANK))
    if start[begin : begin + 1] != b"[":
        raise DataError(f"{shard}: expected a JSON array of records; JSON lines end in .jsonl")
    file.seek(begin)
    scan = _ArrayScan(file, begin)
    for element_begin, element_end in scan:
        yield element_begin, min(element_end, element_begin + MAX_RECORD_BYTES + 1)
    if not scan.is_closed or scan.has_rest():
        raise DataError(
            f"{shard}: the JSON array is not closed, or more follows it; is the file complete?"
        )


def rows_of_lines(data: bytes, context: Context, *, offset: int, start: int) -> list[RawRow]:
    """Parse the lines in one range of a JSON lines file; see `_raw_row` for the arguments."""
    lines = [(begin, line) for begin, _, line in _lines(io.BytesIO(data), 0) if _is_row(line)]
    return [_raw_row(span, context, offset, start + k) for k, span in enumerate(lines)]


def rows_of_array(data: bytes, context: Context, *, offset: int, start: int) -> list[RawRow]:
    """Parse the elements in one range of a JSON array; see `_raw_row` for the arguments."""
    wrapped = b"[" + data + b"]"
    scan = _ArrayScan(io.BytesIO(wrapped), 0)
    spans = list(scan)
    if not (scan.is_closed or scan.is_blank):
        # The last element was too long to be read to its end.
        spans.append((scan.start, len(wrapped)))
    elements = [(begin - 1, wrapped[begin:end]) for begin, end in spans]
    return [_raw_row(span, context, offset, start + k) for k, span in enumerate(elements)]


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, end and bytes of each line; for an overlong line, only its first bytes."""
    while line := file.readline(MAX_RECORD_BYTES + 2):
        end = offset + len(line)
        chunk = line
        while len(chunk) > MAX_RECORD_BYTES and not chunk.endswith(b"\n"):
            chunk = file.readline(MAX_RECORD_BYTES + 2)
            end += len(chunk)
        yield offset, end, line
        offset = end


def _is_row(line: bytes) -> bool:
    """Check whether a line is a row: it is not blank, or is overlong."""
    return len(line) > MAX_RECORD_BYTES or bool(line.strip())


class _ArrayScan:
    """Finds the elements of the JSON array at a file's position.

    Args:
        file: Positioned at the opening bracket.
        offset: Offset of that position in the file.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self._end = offset
        self._chunk = b""
        self.start = offset
        """Offset of the current element."""
        self.is_blank = True
        """Whether only white space of the current element has been scanned so far."""
        self.is_closed = False
        """Whether the array's closing bracket was found."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield offset and end of each element that is not blank."""
        depth, is_in_string = 0, False
        while self._read():
            at = 0
            while at < len(self._chunk):
                if is_in_string:
                    text = _TEXT.match(self._chunk, at)
                    at = text.end() if text else at
                    if self._chunk[at : at + 1] != b'"':
                        # The rest is empty, or a backslash whose escape is in the next chunk.
                        break
                    is_in_string, at = False, at + 1
                token = _TOKEN.search(self._chunk, at)
                stop = token.start() if token else len(self._chunk)
                blanks = stop - at - len(self._chunk[at:stop].lstrip(_BLANK))
                if depth and at + blanks < stop:
                    self._begin(at + blanks)
                at = stop
                if not token:
                    break
                token_bytes = token.group()
                if depth == 1 and token_bytes in b",]":
                    if not self.is_blank:
                        yield self.start, self._offset_of(at)
                    self.is_blank = True
                elif depth:
                    self._begin(at)
                at += 1
                is_in_string = token_bytes == b'"'
                depth += token_bytes in b"[{"
                depth -= token_bytes in b"]}"
                if depth == 0:
                    self.is_closed = True
                    self._chunk = self._chunk[at:]
                    return
            self._chunk = self._chunk[at:]

    def has_rest(self) -> bool:
        """Check whether anything but white space follows the array."""
        rest = self._chunk
        while rest and not rest.strip(_BLANK):
            rest = self._file.read(_CHUNK_BYTES)
        return bool(rest)

    def _begin(self, at: int) -> None:
        """Start the current element here, unless it has started already."""
        if self.is_blank:
            self.start, self.is_blank = self._offset_of(at), False

    def _offset_of(self, at: int) -> int:
        """Return the file offset of an index into the chunk."""
        return self._end - len(self._chunk) + at

    def _read(self) -> bool:
        more = self._file.read(_CHUNK_BYTES)
        self._chunk += more
        self._end += len(more)
        return bool(more)


def _raw_row(span: tuple[int, bytes], context: Context, offset: int, number: int) -> RawRow:
    """Wrap one record.

    Args:
        span: Offset in the range, and bytes.
        context: Of the file.
        offset: Offset of the range in the file.
        number: Of the record in the file.
    """
    begin = offset + span[0]
    return record_row(
        context,
        partial(load_record, span[1]),
        number=number,
        reference=f"{context.shard}@{begin}+{len(span[1])}",
        begin=begin,
    )
