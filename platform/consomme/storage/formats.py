"""The readers of all formats behind two functions: where records are, and what they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, cast

from consomme.storage.image_folder import split_shard
from consomme.storage.layouts import (
    HEAD_BYTES,
    ShardLayout,
    is_url_text,
    kind_by_name,
    layout_of,
    refuse,
)
from consomme.storage.readers import (
    arrow_stream,
    coco,
    delimited,
    folder,
    parquet,
    records,
    webdataset,
)
from consomme.storage.readers.inflate import Inflated, compression_of, inflated
from consomme.storage.readers.record import Context, Make
from consomme.storage.readers.row import Gap, Lost, RawRow, UnreadableShardError
from consomme.storage.readers.row_groups import open_shard
from consomme.storage.readers.table_columns import CheckNames, check_columns
from consomme.storage.reading import Reading
from consomme.storage.stores.store import Store
from consomme.storage.unit import Unit

BY_ROW = ("parquet", "coco", "folder")
"""Kinds of shards that are addressed by row, and not by offset."""

Span = tuple[int, int, Any]
"""Offset and end of a record, and its name: a text or an id, which may come again; None if it has
none."""


def find_layout(url: str, reading: Reading, check: CheckNames = check_columns) -> ShardLayout:
    """Tell what a shard is, from its first bytes.

    Args:
        url: Of the shard.
        reading: Of the recipe; names columns of tables.
        check: Checks the names of the columns of a table.

    Raises:
        UnreadableShardError: It is nothing that can be read.
        DataError: It is a table without the columns that samples need.
    """
    store, path = split_shard(url)
    if not path:
        return ShardLayout(kind="folder")
    if kind_by_name(path) in ("parquet", "arrow"):
        # Its reader says what is wrong with it; see `explain` for what does not.
        return ShardLayout(kind=kind_by_name(path))
    head = store.read(path, 0, HEAD_BYTES)
    compression = compression_of(head)
    if is_url_text(path):
        refuse(head)
        return ShardLayout(kind="table", compression=compression, columns=("url",), delimiter="\t")
    with _content(store, path, compression) as file:
        if compression:
            file.seek(0)
            head = file.read(HEAD_BYTES)
            problem = file.problem if isinstance(file, Inflated) else ""
            if not head and problem:
                raise UnreadableShardError(problem)
        found = layout_of(head, path)
        columns: list[str] = []
        delimiter, has_header = "", False
        if found.kind == "table":
            file.seek(0)
            with _by_lines(file) as lines:
                columns, delimiter, has_header = delimited.header_of(lines, path)
            check(columns, url, reading)
    return ShardLayout(
        kind=found.kind,
        compression=compression,
        columns=tuple(columns),
        delimiter=delimiter,
        has_header=has_header,
        offset=found.offset,
    )


def explain(url: str, detail: str) -> str:
    """Say what a shard is that could not be opened, if its first bytes say more than the reader.

    Args:
        url: Of the shard.
        detail: What the reader said.
    """
    store, path = split_shard(url)
    try:
        refuse(store.read(path, 0, HEAD_BYTES))
    except UnreadableShardError as error:
        return error.detail
    return detail


def spans(url: str, layout: ShardLayout) -> Iterator[Span | Lost | Gap]:
    """Yield where the records of a shard are that is addressed by offset, and what is lost of it.

    Args:
        url: Of the shard.
        layout: What it is.
    """
    store, path = split_shard(url)
    with _content(store, path, layout.compression) as file:
        file.seek(0)
        if layout.kind == "tar":
            size = file.seek(0, io.SEEK_END) if layout.compression else store.size(path)
            yield from webdataset.plan(file, size)
        elif layout.kind == "array":
            yield from records.plan_array(file, layout.offset)
        else:
            with _by_lines(file) as lines:
                if layout.kind == "table":
                    yield from delimited.plan(
                        lines, layout.columns, layout.delimiter, has_header=layout.has_header
                    )
                else:
                    yield from records.plan_lines(lines)
        if isinstance(file, Inflated) and file.problem:
            yield Lost("record_truncated", file.problem)


def num_records(url: str, layout: ShardLayout) -> int:
    """Count the records of a shard that is addressed by row, except Parquet."""
    store, path = split_shard(url)
    if layout.kind == "coco":
        return coco.count(_context(url, "", Reading()), path)
    return folder.count(store)


def raw_rows(unit: Unit, make: Make | None = None) -> list[RawRow]:
    """Return the records of a unit.

    Args:
        unit: The unit.
        make: Makes the samples of a record; None makes those of a data set of images.

    Raises:
        FileNotFoundError: The shard is gone.
    """
    store, path = split_shard(unit.shard)
    reading = Reading.of_unit(unit.reading)
    layout = ShardLayout.of_unit(unit.layout, path)
    context = _context(unit.shard, unit.source, reading, make)
    context = replace(context, columns=layout.columns)
    count = unit.num_records or unit.count
    if layout.kind == "parquet":
        with open_shard(store, path, unit.shard, unit.start) as reader:
            context = replace(context, columns=tuple(reader.schema.names))
            return parquet.rows(reader, context, start=unit.start, count=count)
    if layout.kind == "arrow":
        return arrow_stream.rows(
            store,
            path,
            context,
            offset=unit.offset,
            num_bytes=unit.num_bytes,
            start=unit.start,
            count=count,
        )
    if layout.kind == "coco":
        return coco.rows(context, path, start=unit.start, count=count)
    if layout.kind == "folder":
        return folder.rows(context, start=unit.start, count=count)
    data = _range(store, path, layout.compression, unit.offset, unit.num_bytes)
    if layout.kind == "tar":
        return webdataset.rows(data, context, offset=unit.offset, count=count)
    if layout.kind == "table":
        return delimited.rows(
            data, context, layout.columns, layout.delimiter, unit.offset, unit.start
        )
    read = records.rows_of_lines if layout.kind == "lines" else records.rows_of_array
    return read(data, context, offset=unit.offset, start=unit.start)


def _context(url: str, source: str, reading: Reading, make: Make | None = None) -> Context:
    return Context(shard=url, store=split_shard(url)[0], source=source, reading=reading, make=make)


def _range(store: Store, path: str, compression: str, offset: int, length: int) -> bytes:
    if not compression:
        return store.read(path, offset, length)
    with inflated(store, path, compression) as file:
        file.seek(offset)
        return file.read(length)


@contextmanager
def _content(store: Store, path: str, compression: str) -> Iterator[BinaryIO]:
    if compression:
        with inflated(store, path, compression) as unpacked:
            yield cast(BinaryIO, unpacked)
    else:
        with store.open(path) as file:
            yield file


@contextmanager
def _by_lines(file: BinaryIO) -> Iterator[BinaryIO]:
    """Read a file's lines many at a time; the file stays open."""
    if not isinstance(file, io.RawIOBase):
        yield file
        return
    reader = io.BufferedReader(file, 1 << 20)
    try:
        yield cast(BinaryIO, reader)
    finally:
        reader.detach()
