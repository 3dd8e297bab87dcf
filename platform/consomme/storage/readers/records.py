"""Read JSON lines and LLaVA conversation files: text in one file, images in separate files.

A record names its image by a path relative to the file. LLaVA's format is one long JSON array; its
elements are found one after the other, so that a range can be read without the rest. Both are read
in pieces, so files and lines of any length can be planned.
"""

import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from consomme.storage.readers import text
from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import Lost, RawRow
from consomme.storage.readers.scan import Elements
from consomme.storage.readers.text import UTF8_MARK, lines_of, load_record

_parse = json.JSONDecoder(strict=False).decode


def plan_lines(file: BinaryIO) -> Iterator[tuple[int, int, Any]]:
    """Yield offset, end and value of each line that is not blank; None if it is not JSON.

    For a line that is too long, the range ends one byte after the limit.

    Args:
        file: The file, at its start.
    """
    offset = len(UTF8_MARK) if file.read(len(UTF8_MARK)) == UTF8_MARK else 0
    file.seek(offset)
    for begin, end, line in lines_of(file, offset):
        if _is_row(line):
            yield begin, min(end, begin + text.MAX_RECORD_BYTES + 1), _value(line)


def plan_array(file: BinaryIO, offset: int) -> Iterator[tuple[int, int, Any] | Lost]:
    """Yield offset, end and value of each element of a JSON array; None for one that is broken.

    For an element that is too long, the range ends one byte after the limit. What is lost of a file
    that was cut, or to which something was added, comes last.

    Args:
        file: The file.
        offset: Of the opening bracket.
    """
    scan = Elements(file, offset)
    for begin, end, value in scan:
        yield begin, min(end, begin + text.MAX_RECORD_BYTES + 1), value
    if not scan.is_closed:
        inside = "the file ends inside a record" if scan.open_at else "the JSON array is not closed"
        yield Lost("record_truncated", f"{inside}; is the file complete?")
    elif not _is_inside(file, offset) and scan.has_rest():
        yield Lost("record_malformed", "more follows the JSON array; one file holds one array")


def _is_inside(file: BinaryIO, offset: int) -> bool:
    """Whether the array is a value in an object, so that more may follow it."""
    position = file.tell()
    file.seek(0)
    before = file.read(offset)
    file.seek(position)
    return b"{" in before


def rows_of_lines(data: bytes, context: Context, *, offset: int, start: int) -> list[RawRow]:
    """Parse the lines in one range of a JSON lines file; see `_raw_row` for the arguments."""
    lines = [(begin, line) for begin, _, line in lines_of(io.BytesIO(data), 0) if _is_row(line)]
    return [_raw_row(span, context, offset, start + k) for k, span in enumerate(lines)]


def rows_of_array(data: bytes, context: Context, *, offset: int, start: int) -> list[RawRow]:
    """Parse the elements in one range of a JSON array; see `_raw_row` for the arguments."""
    wrapped = b"[" + data + b"]"
    scan = Elements(io.BytesIO(wrapped), 0)
    spans = [(begin, end) for begin, end, _ in scan]
    if scan.open_at is not None:
        # The last element was too long to be read to its end.
        spans.append((scan.open_at, len(wrapped)))
    elements = [(begin - 1, wrapped[begin:end]) for begin, end in spans]
    return [_raw_row(span, context, offset, start + k) for k, span in enumerate(elements)]


def _is_row(line: bytes) -> bool:
    """Check whether a line is a row: it is not blank, or is overlong."""
    return len(line) > text.MAX_RECORD_BYTES or bool(line.strip())


def _value(line: bytes) -> Any:
    """Return the value of a line, for its id."""
    if len(line) > text.MAX_RECORD_BYTES:
        return None
    try:
        # As in `scan`: names are compared with each other only.
        return _parse(line.decode("latin-1"))
    except (ValueError, RecursionError):
        return None


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
