"""Read CSV and TSV: the records of a table as text, with quotes or without.

A field that begins with a quote ends with one, and may hold line ends; quotes elsewhere are text.
If a quote is never closed, it is text, too: captions from the web have such.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.text import MAX_RECORD_BYTES, UTF8_MARK, lines_of

csv.field_size_limit(2 * MAX_RECORD_BYTES)


@dataclass(frozen=True)
class _Span:
    """One record: its place, its bytes, and whether quotes in it are text."""

    begin: int
    end: int
    data: bytes
    has_quotes: bool = True


def header_of(file: BinaryIO, name: str) -> tuple[list[str], str, bool]:
    """Return the columns of a table, its delimiter, and whether the first record names them.

    A first record with a URL in it is none of names: then they are called column1, column2, ….

    Args:
        file: The table, at its start.
        name: Of the file.
    """
    start = file.read(1 << 16)
    line = start.removeprefix(UTF8_MARK).partition(b"\n")[0]
    delimiter = "\t" if ".tsv" in name.lower() or (b"\t" in line and b"," not in line) else ","
    if delimiter == "," and b"," not in line:
        delimiter = next((d for d in ("\t", ";") if d.encode() in line), ",")
    file.seek(0)
    first = next(_spans(file, 0, delimiter), None)
    if first is None:
        return [], delimiter, False
    fields = _fields(first, delimiter)
    if any(field.lower().startswith(("http://", "https://")) for field in fields):
        return [f"column{number}" for number in range(1, len(fields) + 1)], delimiter, False
    return [field.strip() for field in fields], delimiter, True


def plan(
    file: BinaryIO, columns: tuple[str, ...], delimiter: str, *, has_header: bool
) -> Iterator[tuple[int, int, Any]]:
    """Yield offset, end and value of each record that is not blank; None if it is broken.

    Args:
        file: The table, at its start.
        columns: Names of the columns.
        delimiter: Between fields.
        has_header: Whether the first record names the columns.
    """
    for number, span in enumerate(_spans(file, 0, delimiter)):
        if number or not has_header:
            try:
                value = _record(span, columns, delimiter)
            except RowError:
                value = None
            yield span.begin, min(span.end, span.begin + MAX_RECORD_BYTES + 1), value


def rows(
    data: bytes, context: Context, columns: tuple[str, ...], delimiter: str, offset: int, start: int
) -> list[RawRow]:
    """Parse the records in one range of a table.

    Args:
        data: Bytes of the range.
        context: Of the file.
        columns: Names of the columns.
        delimiter: Between fields.
        offset: Offset of the range in the file.
        start: First record of the range in the file.
    """
    return [
        record_row(
            context,
            partial(_record, span, columns, delimiter),
            number=start + number,
            reference=f"{context.shard}@{offset + span.begin}+{len(span.data)}",
            begin=offset + span.begin,
        )
        for number, span in enumerate(_spans(io.BytesIO(data), 0, delimiter))
    ]


def _record(span: _Span, columns: tuple[str, ...], delimiter: str) -> dict[str, Any]:
    if len(span.data) > MAX_RECORD_BYTES:
        detail = f"found {len(span.data):,} bytes, at most {MAX_RECORD_BYTES:,} are parsed"
        raise RowError("record_too_large", detail)
    fields = _fields(span, delimiter)
    if len(fields) != len(columns):
        detail = f"found {len(fields)} fields, expected {len(columns)}: {', '.join(columns)}"
        raise RowError("record_malformed", detail)
    # An empty field is how a table has no value.
    return {name: field for name, field in zip(columns, fields, strict=True) if field != ""}


def _fields(span: _Span, delimiter: str) -> list[str]:
    try:
        text = span.data.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("caption_not_utf8", f"the record is not UTF-8: {error}") from error
    try:
        source = io.StringIO(text.rstrip("\r\n"), newline="")
        if span.has_quotes:
            return next(csv.reader(source, delimiter=delimiter), [])
        return next(csv.reader(source, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
    except csv.Error as error:
        raise RowError("record_malformed", f"not a record of a table: {error}") from error


def _spans(file: BinaryIO, offset: int, delimiter: str) -> Iterator[_Span]:
    """Yield the records of a table that are not blank."""
    by = delimiter.encode()
    waiting: deque[tuple[int, int, bytes]] = deque()
    lines = lines_of(file, offset)
    while True:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            return
        begin, end, data = line
        if not data.removeprefix(UTF8_MARK).strip(b"\r\n"):
            continue
        if b'"' not in data or not _is_open(data.removeprefix(UTF8_MARK), by, in_quotes=False):
            yield _Span(begin, end, data)
            continue
        # The record goes on in the next lines, unless the quote is never closed.
        joined, rest, is_open = data, [], True
        while is_open and len(joined) <= MAX_RECORD_BYTES:
            more = waiting.popleft() if waiting else next(lines, None)
            if more is None:
                break
            rest.append(more)
            joined += more[2]
            is_open = _is_open(more[2], by, in_quotes=True)
        if is_open:
            waiting.extendleft(reversed(rest))
            yield _Span(begin, end, data, has_quotes=False)
        else:
            yield _Span(begin, rest[-1][1], joined)


def _is_open(line: bytes, by: bytes, *, in_quotes: bool) -> bool:
    """Whether a record goes on after a line, because a quote is open at its end."""
    at = 0
    while True:
        if not in_quotes:
            if line[at : at + 1] != b'"':
                at = line.find(by, at) + 1
                if not at:
                    return False
                continue
            at += 1
        closing = line.find(b'"', at)
        if closing < 0:
            return True
        in_quotes = line[closing + 1 : closing + 2] == b'"'
        at = closing + 2
        if not in_quotes:
            at = line.find(by, closing + 1) + 1
            if not at:
                return False
