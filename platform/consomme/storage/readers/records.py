"""JSON lines and LLaVA conversation files: text in one file, pictures beside it.

A record names its picture by a path relative to the file. LLaVA's format is one long JSON array;
its elements are found by scanning brackets, so that a range can be read without the rest. Both are
scanned piece by piece: no file and no line is too long to plan.
"""

import errno
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from consomme.base.errors import DataError
from consomme.base.sample import Sample
from consomme.storage.readers.text import (
    MAX_RECORD_BYTES,
    MAX_SAMPLE_BYTES,
    RawRow,
    RowError,
    load_record,
    printable,
    refuse_encoded,
    take_id,
    take_turns,
)
from consomme.storage.stores.store import Store, is_safe_path

IMAGE_KEYS = ("image", "image_path", "file_name")
"""Where a record may hold its picture's path, best first."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_PIECE = 1 << 22
_TOKEN = re.compile(rb'["\[\]{},]')
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LOCAL = {
    getattr(errno, name)
    for name in "ENOENT EISDIR ENOTDIR ENAMETOOLONG EINVAL ELOOP EACCES EPERM".split()
}
"""Errors that are about one path. Any other, such as a lost connection, is about the storage, and
must not look as if the picture were missing."""


def plan_lines(file: BinaryIO, shard: str = "the file") -> Iterator[tuple[int, int]]:
    """Yield offset and end of each line that is not blank.

    Of a line that is too long, the range ends where that can be seen.

    Args:
        file: The file.
        shard: Its URL, for messages.

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

    Of an element that is too long, the range ends where that can be seen.

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
        raise DataError(f"{shard}: the JSON array is not closed, or more follows it; is it whole?")


def rows_of_lines(data: bytes, **place: Any) -> list[RawRow]:
    """Parse the lines in one range of a JSON lines file; see `_raw_row` for `place`."""
    lines = [(begin, line) for begin, _, line in _lines(io.BytesIO(data), 0) if _is_row(line)]
    return [_raw_row(index, span, **place) for index, span in enumerate(lines)]


def rows_of_array(data: bytes, **place: Any) -> list[RawRow]:
    """Parse the elements in one range of a JSON array; see `_raw_row` for `place`."""
    wrapped = b"[" + data + b"]"
    scan = _ArrayScan(io.BytesIO(wrapped), 0)
    spans = list(scan)
    if not (scan.is_closed or scan.is_blank):
        # The last element was too long to be read whole.
        spans.append((scan.start, len(wrapped)))
    elements = [(begin - 1, wrapped[begin:end]) for begin, end in spans]
    return [_raw_row(index, span, **place) for index, span in enumerate(elements)]


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, end and bytes of each line; of a long one, its beginning only."""
    while line := file.readline(MAX_RECORD_BYTES + 2):
        end = offset + len(line)
        piece = line
        while len(piece) > MAX_RECORD_BYTES and not piece.endswith(b"\n"):
            piece = file.readline(MAX_RECORD_BYTES + 2)
            end += len(piece)
        yield offset, end, line
        offset = end


def _is_row(line: bytes) -> bool:
    """Tell whether a line counts: it is not blank, or too long to be looked at."""
    return len(line) > MAX_RECORD_BYTES or bool(line.strip())


class _ArrayScan:
    """Find the elements of the JSON array at a file's position.

    Args:
        file: Stands at the opening bracket.
        offset: Where in the file that is.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self._end = offset
        self._piece = b""
        self.start = offset
        """Where the element that is being looked at begins."""
        self.is_blank = True
        """Whether that element has shown nothing but white space yet."""
        self.is_closed = False
        """Whether the array's closing bracket was found."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield offset and end of each element that is not blank."""
        depth, is_text = 0, False
        while self._read():
            at = 0
            while at < len(self._piece):
                if is_text:
                    found = _TEXT.match(self._piece, at)
                    at = found.end() if found else at
                    if self._piece[at : at + 1] != b'"':
                        # What is left is nothing, or a backslash whose other half comes next.
                        break
                    is_text, at = False, at + 1
                token = _TOKEN.search(self._piece, at)
                stop = token.start() if token else len(self._piece)
                blanks = stop - at - len(self._piece[at:stop].lstrip(_BLANK))
                if depth and at + blanks < stop:
                    self._begin(at + blanks)
                at = stop
                if not token:
                    break
                mark = token.group()
                if depth == 1 and mark in b",]":
                    if not self.is_blank:
                        yield self.start, self._place(at)
                    self.is_blank = True
                elif depth:
                    self._begin(at)
                at += 1
                is_text = mark == b'"'
                depth += mark in b"[{"
                depth -= mark in b"]}"
                if depth == 0:
                    self.is_closed = True
                    self._piece = self._piece[at:]
                    return
            self._piece = self._piece[at:]

    def has_rest(self) -> bool:
        """Tell whether anything but blanks follows the array."""
        rest = self._piece
        while rest and not rest.strip(_BLANK):
            rest = self._file.read(_PIECE)
        return bool(rest)

    def _begin(self, at: int) -> None:
        """Note that there is something here; the first such place is where the element begins."""
        if self.is_blank:
            self.start, self.is_blank = self._place(at), False

    def _place(self, at: int) -> int:
        """Where in the file a place in the piece is."""
        return self._end - len(self._piece) + at

    def _read(self) -> bool:
        more = self._file.read(_PIECE)
        self._piece += more
        self._end += len(more)
        return bool(more)


def _raw_row(
    index: int,
    span: tuple[int, bytes],
    *,
    store: Store,
    shard: str,
    offset: int,
    start: int,
    source: str,
) -> RawRow:
    """Wrap one record.

    Args:
        index: Row in the range.
        span: Offset in the range, and bytes.
        store: Where picture paths lead.
        shard: The file's URL, for references.
        offset: Where in the file the range begins.
        start: Row in the file at which the range begins.
        source: Name of the data set.
    """
    base_name = shard.rpartition("/")[2].rpartition(".")[0]
    sample_id = f"{base_name}-{start + index:08d}"
    return RawRow(
        sample_id=sample_id,
        reference=f"{shard}@{offset + span[0]}+{len(span[1])}",
        parse=lambda: _parse(span[1], sample_id, store, source),
    )


def _parse(data: bytes, fallback_id: str, store: Store, source: str) -> Sample:
    record = load_record(data)
    sample_id = take_id(record, fallback_id)
    path = _take_image_path(record)
    turns = take_turns(record)
    if turns is None:
        raise RowError("caption_missing", f"found {', '.join(sorted(record)) or 'nothing'} only")
    return Sample(
        sample_id=sample_id,
        image=read_image(store, path),
        image_name=path,
        turns=turns,
        source=source,
        meta=record,
    )


def _take_image_path(record: dict[str, Any]) -> str:
    images = record.get("images")
    if isinstance(images, list) and len(images) == 1 and "image" not in record:
        record["image"] = record.pop("images")[0]
    for key in IMAGE_KEYS:
        if record.get(key) is not None:
            path = record.pop(key)
            if not isinstance(path, str) or not path:
                raise RowError("record_malformed", f"{key} is {path!r}, expected a path")
            return path
    raise RowError("image_missing", f"the record has none of {', '.join(IMAGE_KEYS)}")


def read_image(store: Store, path: str) -> bytes:
    """Read a picture a record refers to by a path below the record's own folder.

    Raises:
        RowError: There is no such picture, or it is too large to be read.
        OSError: The storage failed; the picture may well be there.
    """
    if not is_safe_path(path):
        raise RowError("unsafe_path", f"{printable(path)!r} leads out of the file's folder")
    try:
        data = store.read(path, 0, MAX_SAMPLE_BYTES + 1)
    except UnicodeEncodeError as error:
        raise RowError("image_missing", f"{path}: the path is not UTF-8") from error
    except OSError as error:
        if error.errno not in _LOCAL and not isinstance(error, FileNotFoundError):
            raise
        raise RowError("image_missing", f"{path}: {error.strerror or 'no such file'}") from error
    if len(data) > MAX_SAMPLE_BYTES:
        detail = f"{path} has more than {MAX_SAMPLE_BYTES:,} bytes"
        raise RowError("image_too_large", detail)
    return data
