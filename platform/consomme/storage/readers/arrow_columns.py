"""Which columns of an Arrow table are read, and how its values become Python values.

A column that cannot be read costs neither the file nor a sample, unless the text, the image or the
id is in it: it is left out, and a warning says so once. Ray registers an extension type that
unpickles what it reads, which would execute code from the file; so of extension types only Arrow's
own are read. They are compared by name: registered and unregistered types are treated alike.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from consomme.base.sample import printable
from consomme.storage.readers.names import (
    CAPTION_KEYS,
    COMMON_CAPTION_KEYS,
    COMMON_IMAGE_KEYS,
    COMMON_TURN_KEYS,
    ID_KEYS,
    IMAGE_KEYS,
    QUESTION_KEYS,
    TURN_KEYS,
)
from consomme.storage.readers.row import RowError
from consomme.storage.reading import Reading, as_names

logger = logging.getLogger(__name__)

Record = dict[str, Any] | RowError
"""Values of one row, or why they are not readable."""

TEXT_KEYS = (
    *(*TURN_KEYS, *COMMON_TURN_KEYS, *CAPTION_KEYS, *COMMON_CAPTION_KEYS),
    *(key for pair in QUESTION_KEYS for key in pair),
)
"""Columns that may hold the text of a sample."""

SAMPLE_KEYS = frozenset((*TEXT_KEYS, *IMAGE_KEYS, *COMMON_IMAGE_KEYS, *ID_KEYS, "system", "meta"))
"""Columns that may be part of a sample; all others are metadata."""


def left_out(schema: pa.Schema) -> dict[int, str]:
    """Return the columns that are not read, by their place, each with the reason."""
    times = Counter(schema.names)
    reasons = {}
    for index, field in enumerate(schema):
        extension = extension_name(field)
        if extension:
            reasons[index] = f"of the extension type {extension}, which could run code"
        elif times[field.name] > 1:
            reasons[index] = f"one of {times[field.name]} of the same name"
    return reasons


@functools.lru_cache(maxsize=256)
def tell_left_out(column: str, why: str, shard: str) -> None:
    """Say once in each process that a column is left out, with the first shard that has it.

    Args:
        column: Its name.
        why: As `left_out` says it.
        shard: URL of the folder of the shard.
    """
    logger.warning(
        "%s: the column %s is left out: it is %s (said once)", shard, printable(column), why
    )


def extension_name(field: pa.Field) -> str:
    """Return the name of the extension type of a column or of a nested field; empty if none."""
    kind = field.type
    name = str((field.metadata or {}).get(b"ARROW:extension:name", b""), "utf-8", "replace")
    if isinstance(kind, pa.BaseExtensionType):
        name = kind.extension_name
        kind = kind.storage_type
    if name and not name.startswith("arrow."):
        return name
    if pa.types.is_dictionary(kind):
        return extension_name(pa.field("", kind.value_type))
    inner = (extension_name(kind.field(index)) for index in range(kind.num_fields))
    return next(filter(None, inner), "")


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of any kind."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def is_bytes_or_text(kind: pa.DataType) -> bool:
    """Whether a type is binary or text, dictionary or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    texts = ("string", "large_string", "string_view", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in (*tests, *texts))


def needed_columns(reading: Reading) -> frozenset[str]:
    """Return the names of columns, in lower case, whose values a sample cannot do without."""
    named = (name for some in reading.columns.values() for name in as_names(some))
    return SAMPLE_KEYS | {part.lower() for name in named for part in (name, name.partition(".")[0])}


def to_records(batch: pa.RecordBatch, needed: frozenset[str]) -> list[Record]:
    """Convert rows to Python values, one by one if one of them cannot be converted.

    Args:
        batch: Rows.
        needed: See `needed_columns`; any other value that cannot be converted becomes null.
    """
    try:
        return list(batch.to_pylist())
    # Arrow raises many types here: text that is not UTF-8, dates beyond Python's range, and more.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        if batch.num_rows > 1:
            middle = batch.num_rows // 2
            halves = (batch.slice(0, middle), batch.slice(middle))
            return [record for half in halves for record in to_records(half, needed)]
        return [_converted(batch, needed)]


def _converted(row: pa.RecordBatch, needed: frozenset[str]) -> Record:
    """Convert a single row column by column."""
    record: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (record[name],) = column.to_pylist()
        except Exception as problem:
            # As in `to_records`.
            if isinstance(problem, MemoryError):
                raise
            if name.lower() in needed:
                is_text = name.lower() in TEXT_KEYS and isinstance(problem, UnicodeDecodeError)
                reason = "caption_not_utf8" if is_text else "record_malformed"
                return RowError(reason, f"the column {name}: {problem}")
            _tell_null(name, type(problem).__name__)
            record[name] = None
    return record


@functools.lru_cache(maxsize=256)
def _tell_null(column: str, problem: str) -> None:
    logger.warning(
        "metadata: values of the column %s cannot be read (%s) and become null (said once)",
        printable(column),
        problem,
    )


def plain(value: Any) -> Any:
    """Convert values of Arrow to JSON values: dates and decimals become text, bytes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return None if isinstance(value, bytes) else str(value)
