"""Read URL lists: Parquet with a URL column and a caption column, without the images.

A row becomes a sample whose image has no bytes and the URL as its name; all other columns are
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.base.sample import ImageFile, Reject, Sample, caption_turns
from consomme.storage.shards import Shard
from consomme.storage.stores.open import split_url
from consomme.storage.unit import Unit, unit_name

URL_COLUMNS = ("url", "URL", "image_url")
CAPTION_COLUMNS = ("caption", "TEXT", "text", "alt_text")


def plan_urls(shard: Shard, max_rows: int, reading: str = "") -> list[Unit]:
    """Split one list into units, from its footer alone.

    Args:
        shard: The list.
        max_rows: Most rows per unit.
        reading: `Reading.for_units`.

    Raises:
        DataError: It is not a Parquet file, or has no column for URLs or captions.
    """
    store, path = split_url(shard.url)
    with store.open(path) as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise DataError(f"{shard.url}: not readable as Parquet: {error}") from error
        find_columns(parquet.schema_arrow.names, shard.url)
        num_rows = parquet.metadata.num_rows
    return [
        Unit(
            unit_id=unit_name(shard, start, reading),
            source=shard.source,
            shard=shard.url,
            start=start,
            count=min(max_rows, num_rows - start),
            num_bytes=0,
            reading=reading,
        )
        for start in range(0, num_rows, max_rows)
    ]


def find_columns(names: Sequence[str], where: str) -> tuple[str, str]:
    """Return the names of the URL column and the caption column.

    Raises:
        DataError: One is missing.
    """
    chosen = []
    for what, known in (("URLs", URL_COLUMNS), ("captions", CAPTION_COLUMNS)):
        name = next((name for name in known if name in names), None)
        if name is None:
            raise DataError(
                f"{where}: found columns {', '.join(names)}; expected one for {what}:"
                f" {', '.join(known)}"
            )
        chosen.append(name)
    return chosen[0], chosen[1]


def read_urls(unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read one unit of a URL list; see `consomme.storage.units.read_unit`."""
    store, path = split_url(unit.shard)
    with store.open(path) as file:
        table = _slice(pq.ParquetFile(file), unit.start, unit.count)
    url_column, caption_column = find_columns(table.column_names, unit.shard)
    samples: list[tuple[int, Sample]] = []
    rejects: list[tuple[int, Reject]] = []
    for row, values in enumerate(table.to_pylist()):
        url, caption = values.pop(url_column), values.pop(caption_column)
        sample_id = f"{path.rpartition('.')[0]}/{unit.start + row:09d}"
        problem = _problem(url, caption)
        if problem:
            reason, detail = problem
            reference = f"{unit.shard}@row{unit.start + row}"
            rejects.append(
                (
                    row,
                    Reject(
                        sample_id=sample_id,
                        source=unit.source,
                        reason=reason,
                        detail=detail,
                        reference=reference,
                    ),
                )
            )
            continue
        samples.append(
            (
                row,
                Sample(
                    sample_id=sample_id,
                    images=(ImageFile(data=b"", name=url),),
                    turns=caption_turns(caption),
                    source=unit.source,
                    meta={"url": url, **_plain(values)},
                ),
            )
        )
    return samples, rejects


def _problem(url: Any, caption: Any) -> tuple[str, str] | None:
    if not isinstance(url, str) or not url.strip():
        return "image_missing", f"the URL is {url!r}"
    if not isinstance(caption, str):
        return "caption_missing", f"the caption is {caption!r}"
    if not caption.strip():
        return "caption_empty", "the caption is empty"
    return None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Convert values to JSON values; anything else becomes text, nulls are dropped."""
    return {k: v for k, v in json.loads(json.dumps(values, default=str)).items() if v is not None}


def _slice(parquet: pq.ParquetFile, start: int, count: int) -> pa.Table:
    """Read a range of rows, and only the row groups that hold them."""
    groups, first, position = [], None, 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if position + rows > start and position < start + count:
            groups.append(group)
            first = position if first is None else first
        position += rows
    table = parquet.read_row_groups(groups, use_threads=False)
    return table.slice(start - (first or 0), count)
