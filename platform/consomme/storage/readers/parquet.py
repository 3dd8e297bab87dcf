"""Read Parquet: consomme's own shards, and data sets with an image column and a text column.

The column `image` or `images` has bytes, Hugging Face structs `{bytes, path}`, or paths relative to
the file's folder, or lists of them; a file of conversations may have neither. Other columns are
identified by name (`TURN_KEYS`, `CAPTION_KEYS`, `ID_KEYS`); the rest is metadata.

If a row group cannot be decoded, its remaining rows are rejects; if a value cannot be converted,
its row is. Problems of the schema are errors of the whole file: a column
of the wrong type or of an extension type. Ray registers an extension type that unpickles what it
reads, which would execute code from the file; so only Arrow's own extension types are accepted.
"""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.storage.readers.names import CAPTION_KEYS, TURN_KEYS
from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.row_groups import ShardReader
from consomme.storage.readers.text import check_values, load_json

IMAGE_COLUMNS = ("image", "images")

Record = dict[str, Any] | RowError
"""Values of one row, or why they are not readable."""


def plan(file: BinaryIO, shard: str, max_rows: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield row counts and bytes of ranges, from the footer alone.

    Small row groups are combined, large ones are split. No range combines a part of a row group
    with another one, so that reading a range decodes at most one row group partially.

    Raises:
        DataError: The footer is not readable, a required column is missing, or a column has an
            unsupported type.
    """
    reader = ShardReader(file, shard)
    _check_schema(reader.schema, shard)
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


def refers_to_files(file: BinaryIO) -> bool:
    """Whether a shard may name images outside it, from the footer alone; true if in doubt."""
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowException:
        # Planning says what is wrong with it.
        return True
    schema, meta = parquet.schema_arrow, parquet.metadata
    for name in IMAGE_COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        prefix = f"{name}."
        if _is_list(kind):
            kind, prefix = kind.value_type, f"{name}.list.element."
        if not pa.types.is_struct(kind):
            if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                return True
            continue
        # Of a list, nulls of absent lists count too; then the paths are looked at one by one.
        for number in range(meta.num_row_groups):
            group = meta.row_group(number)
            columns = [group.column(k) for k in range(group.num_columns)]
            inside = [column for column in columns if column.path_in_schema == f"{prefix}bytes"]
            stats = inside[0].statistics if inside else None
            if stats is None or not stats.has_null_count or stats.null_count:
                return True
    # Parts of a conversation may name images too.
    return any(name in schema.names and _has_parts(schema.field(name).type) for name in TURN_KEYS)


def _has_parts(kind: pa.DataType) -> bool:
    """Whether turns have lists of parts with more than a type and a text."""
    if not (_is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    contents = [f.type for f in kind.value_type if f.name in ("content", "value")]
    parts = [c.value_type for c in contents if _is_list(c)]
    return any(
        pa.types.is_struct(part) and {f.name for f in part} - {"type", "text"} for part in parts
    )


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


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
    _check_schema(reader.schema, context.shard)
    records: list[Record] = []
    for part in reader.read(start, count):
        records += [part] if isinstance(part, RowError) else _to_records(part)
    return [_raw_row(record, context, number) for number, record in enumerate(records, start)]


def _check_schema(schema: pa.Schema, shard: str) -> None:
    names = schema.names
    has_image = bool(set(names) & set(IMAGE_COLUMNS))
    if not set(names) & {*TURN_KEYS, *CAPTION_KEYS} or not (has_image or set(names) & {*TURN_KEYS}):
        captions, turns = " or ".join(CAPTION_KEYS), ", ".join(TURN_KEYS)
        raise DataError(
            f"{shard}: found the columns {', '.join(names)}; expected image or images, and"
            f" {captions}; or a conversation in one of {turns}"
        )
    if len(set(names)) < len(names):
        raise DataError(f"{shard}: found columns of the same name among {', '.join(names)}")
    for field in schema:
        extension = _extension_name(field)
        if extension:
            raise DataError(
                f"{shard}: the column {field.name} is of the extension type {extension}, expected "
                "plain Arrow types; reading it could run code. Write the shard without this column"
            )
    for name in IMAGE_COLUMNS:
        if name in names:
            _check_image_column(name, schema.field(name).type, shard)


def _check_image_column(name: str, image: pa.DataType, shard: str) -> None:
    element = image.value_type if _is_list(image) else image
    kinds = [element]
    if pa.types.is_struct(element):
        kinds = [inner.type for inner in element if inner.name in ("bytes", "path")]
    if not kinds or not all(_is_bytes_or_text(kind) for kind in kinds):
        raise DataError(
            f"{shard}: the column {name} is {image}, expected binary, string or a struct of bytes "
            "and path, or lists of these"
        )


def _extension_name(field: pa.Field) -> str:
    """Return the name of the extension type of a column or of a nested field; empty if none.

    Compares names only, so that registered and unregistered types are treated alike.
    """
    kind = field.type
    name = str((field.metadata or {}).get(b"ARROW:extension:name", b""), "utf-8", "replace")
    if isinstance(kind, pa.BaseExtensionType):
        name = kind.extension_name
        kind = kind.storage_type
    if name and not name.startswith("arrow."):
        return name
    if pa.types.is_dictionary(kind):
        return _extension_name(pa.field("", kind.value_type))
    inner = (_extension_name(kind.field(index)) for index in range(kind.num_fields))
    return next(filter(None, inner), "")


def _is_bytes_or_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    texts = ("string", "large_string", "string_view", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in (*tests, *texts))


def _to_records(batch: pa.RecordBatch) -> list[Record]:
    """Convert rows to Python values, one by one if one of them cannot be converted."""
    try:
        return list(batch.to_pylist())
    # Arrow raises many types here: text that is not UTF-8, dates beyond Python's range, and more.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        if batch.num_rows > 1:
            rows = [batch.slice(row, 1) for row in range(batch.num_rows)]
            return [record for row in rows for record in _to_records(row)]
        return [_conversion_problem(batch, error)]


def _conversion_problem(row: pa.RecordBatch, error: Exception) -> RowError:
    """Return a RowError that names the column of a single row that cannot be converted."""
    for name in row.schema.names:
        try:
            row.column(name).to_pylist()
        except UnicodeDecodeError as problem:
            is_text = name in (*TURN_KEYS, *CAPTION_KEYS)
            reason = "caption_not_utf8" if is_text else "record_malformed"
            return RowError(reason, f"the column {name}: {problem}")
        except Exception as problem:  # noqa: BLE001  # as in `_to_records`
            return RowError("record_malformed", f"the column {name}: {problem}")
    return RowError("record_malformed", str(error))


def _raw_row(record: Record, context: Context, number: int) -> RawRow:
    def load() -> dict[str, Any]:
        if isinstance(record, RowError):
            raise record
        return {name: value for name, value in record.items() if value is not None}

    def meta_of(rest: dict[str, Any]) -> dict[str, Any]:
        if rest.get("source") == context.source:
            del rest["source"]
        return _meta(rest)

    reference = f"{context.shard}#{number}"
    return record_row(context, load, number=number, reference=reference, meta_of=meta_of)


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    """Collect metadata that JSON can represent; null columns and raw bytes are left out."""
    stored = record.pop("meta", None)
    stored = load_json(stored) if isinstance(stored, str) else _plain(stored)
    meta: dict[str, Any] = {} if stored is None else {"meta": stored}
    if isinstance(stored, dict):
        meta = stored
    for key, value in record.items():
        if value is not None and not isinstance(value, bytes):
            meta[key] = _plain(value)
    check_values(meta)
    return meta


def _plain(value: Any) -> Any:
    """Convert Arrow values to JSON values: dates and decimals become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return None if isinstance(value, bytes) else str(value)
