"""Read Arrow files: the shards of a folder that `datasets.save_to_disk` wrote.

Such a file is a stream of messages: the schema, dictionaries, and record batches. Planning reads
the heads of the messages, which say how many rows and bytes follow; a range is read as a stream of
its own, made of the first messages and of the record batches that hold it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import BinaryIO

import pyarrow as pa

from consomme.storage.readers.arrow_columns import (
    Record,
    left_out,
    needed_columns,
    tell_left_out,
    to_records,
)
from consomme.storage.readers.parquet import check_arrow_schema, id_columns, table_rows
from consomme.storage.readers.record import Context
from consomme.storage.readers.row import RawRow, RowError, UnreadableShardError
from consomme.storage.readers.table_columns import CheckNames, check_columns
from consomme.storage.reading import Reading
from consomme.storage.stores.store import Store

_FILE_MAGIC = b"ARROW1\0\0"
"""Begins a file with an index at its end; its messages are those of a stream."""

_CONTINUED = b"\xff\xff\xff\xff"
_MAX_HEAD = 64 * 2**20
"""Largest head of a message that is read; a schema of a thousand columns has 0.3 MB."""

_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
"""Types of messages that matter, as `Message.fbs` of Arrow numbers them."""


@dataclass(frozen=True)
class _Message:
    kind: int
    begin: int
    end: int
    num_rows: int
    """Of a record batch."""


def plan(
    file: BinaryIO,
    shard: str,
    max_rows: int,
    max_bytes: int,
    reading: Reading,
    check: CheckNames = check_columns,
) -> Iterator[tuple[int, int, int]]:
    """Yield row count, offset and bytes of ranges; none is of parts of two record batches.

    Args:
        file: The whole shard.
        shard: URL of the shard, for messages.
        max_rows: Most rows of a range.
        max_bytes: Most bytes of a range, unless a single row has more.
        reading: Of the recipe.
        check: Checks the names of the columns.

    Raises:
        UnreadableShardError: It is no Arrow file, or ends in the middle of a message.
        DataError: A required column is missing, or a column of images has an unsupported type.
    """
    messages = list(_messages(file))
    head = _head(file, messages)
    schema = _schema(head)
    reasons = {schema.field(index).name: why for index, why in left_out(schema).items()}
    kept = [field for index, field in enumerate(schema) if index not in left_out(schema)]
    check_arrow_schema(pa.schema(kept), reasons, shard, reading, check)
    rows = begin = end = 0
    for message in messages:
        if message.kind != _BATCH or not message.num_rows:
            continue
        size = message.end - message.begin
        is_large = message.num_rows > max_rows or size > max_bytes
        is_full = rows + message.num_rows > max_rows or message.end - begin > max_bytes
        if rows and (is_large or is_full):
            yield rows, begin, end - begin
            rows = 0
        if is_large:
            fitting = max(1, min(max_rows, max_bytes * message.num_rows // max(1, size)))
            for skipped in range(0, message.num_rows, fitting):
                yield min(fitting, message.num_rows - skipped), message.begin, size
            continue
        begin = begin if rows else message.begin
        rows, end = rows + message.num_rows, message.end
    if rows:
        yield rows, begin, end - begin


def ids(file: BinaryIO, shard: str, reading: Reading) -> Iterator[Record]:
    """Yield what each row has in the columns of ids; nothing if there are no such columns.

    Record batches are read whole, so such a shard is read once more than others.

    Raises:
        UnreadableShardError: It is no Arrow file, or ends in the middle of a message.
    """
    messages = list(_messages(file))
    head = _head(file, messages)
    schema = _schema(head)
    wanted = id_columns(schema.names, reading)
    if not wanted:
        return
    fields = [index for index, name in enumerate(schema.names) if name in wanted]
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    for message in messages:
        if message.kind != _BATCH:
            continue
        file.seek(message.begin)
        body = file.read(message.end - message.begin)
        records: list[Record] = []
        try:
            (batch,) = pa.ipc.open_stream(pa.BufferReader(head + body), options=options)
            batch.validate(full=True)
            records = to_records(batch, frozenset())
        # Arrow reports damage by many exception types; such rows are rejects when they are read.
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
        yield from records or [{}] * message.num_rows


def rows(
    store: Store,
    path: str,
    context: Context,
    *,
    offset: int,
    num_bytes: int,
    start: int,
    count: int,
) -> list[RawRow]:
    """Parse a range of rows.

    Args:
        store: Holds the shard.
        path: Its path there.
        context: Of the shard.
        offset: Of the first record batch.
        num_bytes: Of the record batches.
        start: First row in the shard.
        count: Number of rows.

    Raises:
        DataError: The shard changed after planning.
    """
    with store.open(path) as file:
        head = _head(file, list(_until_batch(_messages(file))))
        body = store.read(path, offset, num_bytes)
        skipped = 0
        if sum(message.num_rows for message in _messages(io.BytesIO(body))) != count:
            # The range is a part of one record batch.
            before = takewhile(lambda one: one.begin < offset, _messages(file))
            skipped = start - sum(one.num_rows for one in before)
    schema = _schema(head)
    folder = context.shard.rpartition("/")[0]
    reasons = left_out(schema)
    for index, why in reasons.items():
        tell_left_out(schema.field(index).name, why, folder)
    kept = [index for index in range(len(schema)) if index not in reasons]
    needed = needed_columns(context.reading)
    records: list[Record] = []
    options = pa.ipc.IpcReadOptions(included_fields=kept if reasons else None, use_threads=False)
    problem = "the record batch ends early"
    try:
        for batch in pa.ipc.open_stream(pa.BufferReader(head + body), options=options):
            batch.validate(full=True)
            first = min(skipped, batch.num_rows)
            last = min(first + count - len(records), batch.num_rows)
            skipped -= first
            records += to_records(batch.slice(first, last - first), needed)
    # Arrow reports damage by many exception types; the bytes are in memory, so no storage failed.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        problem = f"the record batch cannot be read: {error}"
    records += [RowError("record_malformed", problem)] * (count - len(records))
    return table_rows(records, context, start)


def _until_batch(messages: Iterator[_Message]) -> Iterator[_Message]:
    """Yield the messages up to the first record batch."""
    for message in messages:
        yield message
        if message.kind == _BATCH:
            return


def _messages(file: BinaryIO) -> Iterator[_Message]:
    """Yield the messages of a file, by their heads alone.

    Raises:
        UnreadableShardError: The file is none of Arrow, or ends within a message.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    at = len(_FILE_MAGIC) if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    while at < size:
        file.seek(at)
        start = file.read(8)
        if start[:4] != _CONTINUED or len(start) < 8:
            raise UnreadableShardError(f"not readable as Arrow: no message at byte {at:,}")
        (length,) = struct.unpack("<i", start[4:])
        if length == 0:
            return
        if not 0 < length <= min(_MAX_HEAD, size):
            raise UnreadableShardError(f"not readable as Arrow: a message of {length:,} bytes")
        kind, body, num_rows = _parse_head(file.read(length), at)
        end = at + 8 + length + body
        if end > size:
            raise UnreadableShardError(
                f"not readable as Arrow: the file ends within the message at byte {at:,}"
            )
        yield _Message(kind, at, end, num_rows)
        at = end


def _parse_head(head: bytes, at: int) -> tuple[int, int, int]:
    """Return type, bytes of the body and rows of a message, from its flatbuffer.

    Source: `Message.fbs` of Apache Arrow: a table of version, header type, header, body length; a
    record batch begins with its length.
    """
    try:
        message = _Table(head, struct.unpack_from("<I", head)[0])
        kind = message.number(1, "<B")
        body = message.number(3, "<q")
        inner = message.offset(2)
        num_rows = 0
        if kind == _BATCH and inner:
            table = _Table(head, inner + struct.unpack_from("<I", head, inner)[0])
            num_rows = table.number(0, "<q")
    except (struct.error, IndexError) as error:
        detail = f"not readable as Arrow: a damaged message at byte {at:,}"
        raise UnreadableShardError(detail) from error
    if body < 0 or num_rows < 0:
        raise UnreadableShardError(f"not readable as Arrow: impossible sizes at byte {at:,}")
    return kind, body, num_rows


class _Table:
    """A table of a flatbuffer: fields by their number, absent ones are zero."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        if not 0 <= self._vtable <= len(data) - 4:
            raise IndexError(self._vtable)
        (self._length,) = struct.unpack_from("<H", data, self._vtable)

    def offset(self, field: int) -> int:
        """Return where a field stands; 0 if it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._length:
            return 0
        (relative,) = struct.unpack_from("<H", self._data, self._vtable + entry)
        return self._at + relative if relative else 0

    def number(self, field: int, kind: str) -> int:
        """Return a number."""
        at = self.offset(field)
        return int(struct.unpack_from(kind, self._data, at)[0]) if at else 0


def _head(file: BinaryIO, messages: list[_Message]) -> bytes:
    """Return the bytes before the first record batch: the schema, and dictionaries."""
    if not messages or messages[0].kind != _SCHEMA:
        raise UnreadableShardError("not readable as Arrow: found no schema at its start")
    heads = []
    for number, message in enumerate(messages):
        if message.kind == _BATCH:
            later = any(one.kind == _DICTIONARY for one in messages[number:])
            if later:
                detail = "an Arrow file whose dictionaries grow; write it without dictionaries"
                raise UnreadableShardError(detail)
            break
        heads.append(message)
    file.seek(heads[0].begin)
    return file.read(heads[-1].end - heads[0].begin)


def _schema(head: bytes) -> pa.Schema:
    try:
        return pa.ipc.open_stream(pa.BufferReader(head)).schema
    except pa.ArrowException as error:
        raise UnreadableShardError(f"not readable as Arrow: the schema: {error}") from error
