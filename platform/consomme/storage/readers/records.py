"""JSON lines and LLaVA conversation files: text in one file, pictures beside it.

A record names its picture by a path relative to the file. LLaVA's format is one long JSON array;
its elements are found by scanning brackets, so that a range can be read without the rest.
"""

import io
import re
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

from consomme.base.errors import DataError
from consomme.base.sample import Sample
from consomme.storage.files import Store, is_safe_path
from consomme.storage.readers.text import (
    RawRow,
    RowError,
    load_record,
    printable,
    take_id,
    take_turns,
)

IMAGE_KEYS = ("image", "image_path", "file_name")
"""Where a record may hold its picture's path, best first."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)
_BLANK = b" \t\r\n"


def plan_lines(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield offset and end of each line that is not blank."""
    offset = 0
    for line in file:
        if line.strip():
            yield offset, offset + len(line)
        offset += len(line)


def plan_array(file: BinaryIO, shard: str) -> Iterator[tuple[int, int]]:
    """Yield offset and end of each element of a JSON array.

    Raises:
        DataError: The file is not one complete array.
    """
    data = file.read()
    begin = len(data) - len(data.removeprefix(b"\xef\xbb\xbf").lstrip(_BLANK))
    if data[begin : begin + 1] != b"[":
        raise DataError(f"{shard}: expected a JSON array of records; JSON lines end in .jsonl")
    end = yield from _elements(data, begin)
    if end < 0 or data[end:].strip(_BLANK):
        raise DataError(f"{shard}: the JSON array is not closed, or more follows it; is it whole?")


def rows_of_lines(data: bytes, **place: Any) -> list[RawRow]:
    """Parse the lines in one range of a JSON lines file; see `_raw_row` for `place`."""
    spans, offset = [], 0
    for line in io.BytesIO(data):
        if line.strip():
            spans.append((offset, line))
        offset += len(line)
    return [_raw_row(index, span, **place) for index, span in enumerate(spans)]


def rows_of_array(data: bytes, **place: Any) -> list[RawRow]:
    """Parse the elements in one range of a JSON array; see `_raw_row` for `place`."""
    wrapped = b"[" + data + b"]"
    spans = [(start - 1, wrapped[start:end]) for start, end in _elements(wrapped, 0)]
    return [_raw_row(index, span, **place) for index, span in enumerate(spans)]


def _elements(data: bytes, begin: int) -> Generator[tuple[int, int], None, int]:
    """Yield offset and end of each element of the array that opens at `begin`.

    Returns:
        Where the array ends; -1 if it does not.
    """
    depth, start = 0, begin + 1
    for token in _TOKEN.finditer(data, begin):
        mark = token.group()
        if depth == 1 and mark in (b",", b"]"):
            if data[start : token.start()].strip(_BLANK):
                yield start, token.start()
            start = token.end()
        depth += mark in (b"[", b"{")
        depth -= mark in (b"]", b"}")
        if depth == 0:
            return token.end()
    return -1


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
    stem = shard.rpartition("/")[2].rpartition(".")[0]
    sample_id = f"{stem}-{start + index:08d}"
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
    """Read a picture a record refers to by a path below the record's own folder."""
    if not is_safe_path(path):
        raise RowError("unsafe_path", f"{printable(path)!r} leads out of the file's folder")
    try:
        return store.read(path)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise RowError("image_missing", f"{printable(path)}: {reason}") from error
