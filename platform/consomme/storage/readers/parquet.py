"""Parquet: consomme's own shards, and data sets with an image column and a text column.

The `image` column holds bytes, a Hugging Face struct `{bytes, path}`, or a path below the file's
folder. Columns are known by name (`TURN_KEYS`, `CAPTION_KEYS`, `ID_KEYS`); the rest is metadata.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.base.sample import Sample
from consomme.storage.files import Store
from consomme.storage.readers.records import read_image
from consomme.storage.readers.text import (
    CAPTION_KEYS,
    TURN_KEYS,
    RawRow,
    RowError,
    take_id,
    take_turns,
)

_UNREADABLE = (OSError, pa.ArrowException)


def plan(file: BinaryIO, shard: str, max_rows: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield row counts and bytes of ranges, from the footer alone.

    Small row groups are taken together, large ones are cut; no range straddles a cut and a whole
    group, so that at most one row group is read for nothing but its part.

    Raises:
        DataError: The footer is not readable, or a column that is needed is not there.
    """
    try:
        parquet = pq.ParquetFile(file)
    except _UNREADABLE as error:
        raise DataError(f"{shard}: not readable as Parquet: {error}") from error
    names = parquet.schema_arrow.names
    if "image" not in names or not set(names) & {*TURN_KEYS, *CAPTION_KEYS}:
        wanted = " or ".join((*TURN_KEYS, *CAPTION_KEYS))
        raise DataError(
            f"{shard}: found the columns {', '.join(names)}; expected image and {wanted}"
        )
    pending_rows = pending_bytes = 0
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        num_rows, num_bytes = group.num_rows, group.total_byte_size
        if pending_rows and (
            pending_rows + num_rows > max_rows or pending_bytes + num_bytes > max_bytes
        ):
            yield pending_rows, pending_bytes
            pending_rows = pending_bytes = 0
        if num_rows and (num_rows > max_rows or num_bytes > max_bytes):
            fitting = max(1, min(max_rows, max_bytes * num_rows // num_bytes))
            parts = -(-num_rows // fitting)
            for part in range(parts):
                rows = num_rows * (part + 1) // parts - num_rows * part // parts
                yield rows, num_bytes * rows // num_rows
        elif num_rows:
            pending_rows, pending_bytes = pending_rows + num_rows, pending_bytes + num_bytes
    if pending_rows:
        yield pending_rows, pending_bytes


def rows(
    file: BinaryIO, *, store: Store, shard: str, start: int, count: int, source: str
) -> list[RawRow]:
    """Parse a range of rows.

    A row group that cannot be decoded costs the rows of this range, not the run.

    Args:
        file: The whole shard.
        store: Where paths in the image column lead.
        shard: The shard's URL, for references.
        start: First row in the shard.
        count: How many rows.
        source: Name of the data set.
    """
    stem = shard.rpartition("/")[2].rpartition(".")[0]
    records: list[dict[str, Any] | str]
    try:
        records = list(_read_range(file, start, count).to_pylist())
    except (*_UNREADABLE, ValueError) as error:
        records = [f"the row group cannot be read: {error}"] * count
    return [
        _raw_row(f"{stem}-{start + index:08d}", f"{shard}#{start + index}", record, store, source)
        for index, record in enumerate(records)
    ]


def _read_range(file: BinaryIO, start: int, count: int) -> pa.Table:
    parquet = pq.ParquetFile(file)
    groups: list[int] = []
    first = position = 0
    for index in range(parquet.metadata.num_row_groups):
        num_rows = parquet.metadata.row_group(index).num_rows
        if position < start + count and position + num_rows > start:
            if not groups:
                first = position
            groups.append(index)
        position += num_rows
    return parquet.read_row_groups(groups, use_threads=False).slice(start - first, count)


def _raw_row(
    sample_id: str, reference: str, record: dict[str, Any] | str, store: Store, source: str
) -> RawRow:
    def parse() -> Sample:
        if isinstance(record, str):
            raise RowError("record_malformed", record)
        return _parse(dict(record), sample_id, store, source)

    return RawRow(sample_id=sample_id, reference=reference, parse=parse)


def _parse(record: dict[str, Any], fallback_id: str, store: Store, source: str) -> Sample:
    sample_id = take_id(record, fallback_id)
    image, name = _take_image(record, sample_id, store)
    turns = take_turns(record)
    if turns is None:
        raise RowError("caption_missing", "the text columns are null")
    if record.get("source") == source:
        del record["source"]
    return Sample(
        sample_id=sample_id,
        image=image,
        image_name=name,
        turns=turns,
        source=source,
        meta=_meta(record),
    )


def _take_image(record: dict[str, Any], sample_id: str, store: Store) -> tuple[bytes, str]:
    image: Any = record.pop("image")
    name = record.pop("image_name", None)
    path: Any = None
    if isinstance(image, dict):
        image, path = image.get("bytes"), image.get("path")
    if isinstance(image, str):
        image, path = None, image
    if isinstance(image, bytes):
        return image, str(name or path or sample_id)
    if path:
        return read_image(store, path), str(name or path)
    raise RowError("image_missing", "the image column is null")


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    """Keep what JSON can hold; null columns and raw bytes are left out."""
    text = record.pop("meta", None)
    meta: Any = {}
    if isinstance(text, str):
        try:
            meta = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RowError("record_malformed", f"meta is not JSON: {error}") from error
    elif text is not None:
        meta = {"meta": text}
    if not isinstance(meta, dict):
        meta = {"meta": meta}
    rest = {
        key: value
        for key, value in record.items()
        if value is not None and not isinstance(value, bytes)
    }
    return {**meta, **json.loads(json.dumps(rest, default=str))}
