"""Read Parquet: consomme's own shards, and data sets of images with texts in their columns.

A column of images has bytes, Hugging Face structs `{bytes, path}`, or paths relative to the file's
folder, or lists of them; a file of conversations may have none. `consomme.storage.readers.names`
has the names of columns; what is none of them is metadata.

If a row group cannot be decoded, its remaining rows are rejects; if a value of a sample cannot be
converted, its row is; see `arrow_columns` for all other columns.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.base.sample import Sample
from consomme.storage.readers.arrow_columns import (
    Record,
    is_bytes_or_text,
    is_list,
    needed_columns,
    plain,
    to_records,
)
from consomme.storage.readers.names import (
    COMMON_IMAGE_KEYS,
    ID_KEYS,
    IMAGE_KEYS,
    TURN_KEYS,
    mapping_hint,
)
from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow, RowError, UnreadableShardError
from consomme.storage.readers.row_groups import ShardReader
from consomme.storage.readers.table_columns import CheckNames, check_columns
from consomme.storage.readers.text import finite, load_json
from consomme.storage.reading import Reading, as_names


def plan(
    file: BinaryIO,
    shard: str,
    max_rows: int,
    max_bytes: int,
    reading: Reading,
    check: CheckNames = check_columns,
) -> Iterator[tuple[int, int]]:
    """Yield row counts and bytes of ranges, from the footer alone.

    Small row groups are combined, large ones are split. No range combines a part of a row group
    with another one, so that reading a range decodes at most one row group partially.

    Raises:
        UnreadableShardError: The footer is not readable.
        DataError: A required column is missing, or a column of images has an unsupported type.
    """
    reader = ShardReader(file, shard)
    check_schema(reader, shard, reading, check)
    pending_rows = pending_bytes = 0
    for num_rows, num_bytes in reader.groups:
        if pending_rows and (
            pending_rows + num_rows > max_rows or pending_bytes + num_bytes > max_bytes
        ):
            yield pending_rows, pending_bytes
            pending_rows = pending_bytes = 0
        if num_rows and (num_rows > max_rows or num_bytes > max_bytes):
            fitting = max(1, min(max_rows, max_bytes * num_rows // max(1, num_bytes)))
            parts = -(-num_rows // fitting)
            for part in range(parts):
                rows = num_rows * (part + 1) // parts - num_rows * part // parts
                yield rows, num_bytes * rows // num_rows
        elif num_rows:
            pending_rows, pending_bytes = pending_rows + num_rows, pending_bytes + num_bytes
    if pending_rows:
        yield pending_rows, pending_bytes


def ids(file: BinaryIO, shard: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield what each row has in the columns of ids; nothing if there are no such columns.

    Raises:
        UnreadableShardError: The footer is not readable.
    """
    reader = ShardReader(file, shard)
    wanted = id_columns(reader.schema.names, reading)
    if not wanted:
        return
    try:
        yield from reader.values(wanted)
    except UnreadableShardError:
        # The rows of a damaged row group are rejects when they are read.
        return


def id_columns(names: Collection[str], reading: Reading) -> list[str]:
    """Return the columns of a table that may hold ids, by the names of all.

    Consomme's own shards have none to look at: their ids are unique already.
    """
    if {"sample_id", "source", "meta"} <= set(names):
        return []
    named = reading.columns.get("id")
    wanted = [named] if isinstance(named, str) else ID_KEYS
    return [name for name in wanted if name in names]


def refers_to_files(file: BinaryIO) -> bool:
    """Whether a shard may name images outside it, from the footer alone; true if in doubt."""
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowException:
        # Planning says what is wrong with it.
        return True
    schema = parquet.schema_arrow
    known = (*IMAGE_KEYS, *COMMON_IMAGE_KEYS)
    if any(_may_refer(parquet, name) for name in schema.names if name.lower() in known):
        return True
    # Parts of a conversation may name images too.
    return any(name in schema.names and _has_parts(schema.field(name).type) for name in TURN_KEYS)


def _may_refer(parquet: pq.ParquetFile, name: str) -> bool:
    """Whether a column of images may have paths without bytes."""
    index = parquet.schema_arrow.names.index(name)
    kind, prefix = parquet.schema_arrow.field(index).type, f"{name}."
    if is_list(kind):
        kind, prefix = kind.value_type, f"{name}.list.element."
    if not pa.types.is_struct(kind):
        return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    # Of a list, nulls of absent lists count too; then the paths are looked at one by one.
    meta = parquet.metadata
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        columns = [group.column(k) for k in range(group.num_columns)]
        inside = [column for column in columns if column.path_in_schema == f"{prefix}bytes"]
        stats = inside[0].statistics if inside else None
        if stats is None or not stats.has_null_count or stats.null_count:
            return True
    return False


def _has_parts(kind: pa.DataType) -> bool:
    """Whether turns have lists of parts with more than a type and a text."""
    if not (is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    contents = [f.type for f in kind.value_type if f.name in ("content", "value")]
    parts = [c.value_type for c in contents if is_list(c)]
    return any(
        pa.types.is_struct(part) and {f.name for f in part} - {"type", "text"} for part in parts
    )


def rows(reader: ShardReader, context: Context, *, start: int, count: int) -> list[RawRow]:
    """Parse a range of rows.

    Args:
        reader: The open shard.
        context: Of the shard.
        start: First row in the shard.
        count: Number of rows.

    Raises:
        DataError: The shard changed after planning.
    """
    if context.make is None:
        check_schema(reader, context.shard, context.reading)
    needed = needed_columns(context.reading)
    records: list[Record] = []
    for part in reader.read(start, count):
        records += [part] if isinstance(part, RowError) else to_records(part, needed)
    return table_rows(records, context, start)


def table_rows(records: list[Record], context: Context, start: int) -> list[RawRow]:
    """Wrap the records of a table.

    Args:
        records: Some rows.
        context: Of the shard.
        start: Row of the first one in the shard.
    """
    return [_raw_row(record, context, number) for number, record in enumerate(records, start)]


def check_schema(
    reader: ShardReader, shard: str, reading: Reading, check: CheckNames = check_columns
) -> None:
    """Check that columns make samples, and that those of images can be such.

    Raises:
        DataError: They do not; the message names the columns and says how to map them.
    """
    check_arrow_schema(reader.schema, reader.left_out, shard, reading, check)


def check_arrow_schema(
    schema: pa.Schema,
    left_out: Mapping[str, str],
    shard: str,
    reading: Reading,
    check: CheckNames = check_columns,
) -> None:
    """Check the columns of a table, as `check_schema` does.

    Args:
        schema: Of the columns that are read.
        left_out: Columns that are not, each with the reason.
        shard: URL of the shard.
        reading: Of the recipe.
        check: Checks the names of the columns.
    """
    try:
        check(schema.names, shard, reading)
        if check is check_columns:
            _check_images(schema, shard, reading)
    except DataError as error:
        if not left_out:
            raise
        listed = "; ".join(f"{name} is {why}" for name, why in left_out.items())
        raise DataError(f"{error}. Columns that are not read: {listed}") from error


def _check_images(schema: pa.Schema, shard: str, reading: Reading) -> None:
    named = as_names(reading.columns.get("image", ()))
    for field in schema:
        if field.name in named or (not named and field.name in ("image", "images")):
            _check_image_column(field, shard, schema.names)


def _check_image_column(field: pa.Field, shard: str, names: list[str]) -> None:
    element = field.type.value_type if is_list(field.type) else field.type
    kinds = [element]
    if pa.types.is_struct(element):
        kinds = [inner.type for inner in element if inner.name in ("bytes", "path")]
    if not kinds or not all(is_bytes_or_text(kind) for kind in kinds):
        raise DataError(
            f"{shard}: the column {field.name} is {field.type}, expected binary, string or a struct"
            f" of bytes and path, or lists of these; found the columns {', '.join(names)};"
            f" {mapping_hint(name for name in names if name != field.name)}"
        )


_STATUS = "status"
_FETCHED_BY = ({"error_message"}, {"key", "url"})
"""Columns beside `status` that tell a table of img2dataset, which has a row for each URL."""


def _refuse_unfetched(record: dict[str, Any]) -> None:
    """Reject a row whose image img2dataset did not fetch, with its error."""
    status = record.get(_STATUS)
    if not isinstance(status, str) or status == "success":
        return
    if any(marks <= record.keys() for marks in _FETCHED_BY):
        error = record.get("error_message")
        detail = f"img2dataset: {status}{f': {error}' if error else ''}"
        raise RowError("image_missing", detail)


def _raw_row(record: Record, context: Context, number: int) -> RawRow:
    def load() -> dict[str, Any]:
        if isinstance(record, RowError):
            raise record
        # An empty list is how tables have no conversation and no captions.
        return {name: value for name, value in record.items() if value is not None and value != []}

    def meta_of(rest: dict[str, Any]) -> dict[str, Any]:
        if rest.get("source") == context.source:
            del rest["source"]
        return _meta(rest)

    reference = f"{context.shard}#{number}"
    raw = record_row(context, load, number=number, reference=reference, meta_of=meta_of)

    def parse() -> list[Sample | RowError]:
        if isinstance(record, dict):
            _refuse_unfetched(record)
        return raw.parse()

    return replace(raw, parse=parse)


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    """Collect metadata that JSON can represent; null columns and raw bytes are left out."""
    stored = record.pop("meta", None)
    stored = load_json(stored) if isinstance(stored, str) else plain(stored)
    meta: dict[str, Any] = {} if stored is None else {"meta": stored}
    if isinstance(stored, dict):
        meta = stored
    for key, value in record.items():
        if value is not None and not isinstance(value, bytes):
            meta[key] = plain(value)
    kept: dict[str, Any] = finite(meta)
    return kept
