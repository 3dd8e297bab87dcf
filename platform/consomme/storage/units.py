"""Units: ranges of rows that are read, retried, resumed and committed as one.

Planning looks at headers, footers and line ends, never at pixels, and covers every row of every
shard exactly once. The same shards always give the same units, wherever they are mounted.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample
from consomme.storage.files import Store, split_url
from consomme.storage.readers import parquet, records, webdataset
from consomme.storage.readers.text import RawRow, RowError, check_sample, printable
from consomme.storage.shards import Shard, find_shards

MAX_UNIT_ROWS = 1024
MAX_UNIT_BYTES = 128 * 2**20


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A contiguous range of rows of one shard."""

    unit_id: str
    """Safe in a file name, unique in a run, and the same on every machine."""

    source: str
    """Name of the data set, as the recipe gives it."""

    shard: str
    """URL of the shard."""

    start: int
    """First row in the shard, from 0."""

    count: int
    """Rows, good and bad."""

    num_bytes: int
    """Bytes of the range; for Parquet an estimate, unpacked."""

    offset: int = 0
    """Where in the shard the range begins; 0 for Parquet, which is reached by rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Unit":
        """Read what `to_dict` wrote."""
        return cls(**values)


ReadUnit = Callable[[Unit], tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]]
"""Reads one unit: samples and rejects, each with its row."""


def plan_units(
    inputs: Sequence[str],
    source: str,
    max_rows: int = MAX_UNIT_ROWS,
    max_bytes: int = MAX_UNIT_BYTES,
) -> list[Unit]:
    """Cut the shards behind some inputs into units, in memory; for data sets of a modest size.

    Args:
        inputs: Files, folders, globs and brace ranges; see `consomme.storage.shards`.
        source: Name of the data set.
        max_rows: Rows a unit may have.
        max_bytes: Bytes a unit may have, unless a single row has more. Pictures beside a JSON file
            do not count: their sizes are not in it.

    Returns:
        Units in the order of inputs, shards and rows.

    Raises:
        RecipeError: An input matches nothing.
        DataError: A shard cannot be read at all.
    """
    shards = find_shards(inputs, source)
    return [unit for shard in shards for unit in plan_shard(shard, max_rows, max_bytes)]


def plan_shard(
    shard: Shard, max_rows: int = MAX_UNIT_ROWS, max_bytes: int = MAX_UNIT_BYTES
) -> list[Unit]:
    """Cut one shard into units; see `plan_units`."""
    store, path = split_url(shard.url)
    units, start = [], 0
    for count, offset, num_bytes in _ranges(store, path, shard.url, max_rows, max_bytes):
        units.append(
            Unit(
                unit_id=unit_name(shard, start),
                source=shard.source,
                shard=shard.url,
                start=start,
                count=count,
                num_bytes=num_bytes,
                offset=offset,
            )
        )
        start += count
    return units


def unit_name(shard: Shard, start: int) -> str:
    """Name the unit of a shard that begins at a row."""
    path = shard.url.rpartition("/")[2]
    named = f"{shard.source}\t{shard.name}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(named).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", path.rpartition(".")[0] or path)[:60]
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.source)[:30]
    return f"{label}-{stem}-{digest}-{start:09d}"


def read_unit(unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read one unit.

    Every row comes back exactly once, as a sample or as a reject. Whether the pictures can be
    decoded is not looked at here. A key that came before in the same unit is a reject.

    Returns:
        Samples and rejects, each with its row in the unit.

    Raises:
        DataError: The shard is gone, or has changed since it was planned.
    """
    try:
        found = _raw_rows(unit)
    except FileNotFoundError as error:
        raise DataError(f"{unit.shard}: the shard is gone since it was planned") from error
    if len(found) != unit.count:
        raise DataError(
            f"{unit.shard}: found {len(found)} rows from row {unit.start}, planned {unit.count}; "
            "the shard changed since it was planned"
        )
    samples: list[tuple[int, Sample]] = []
    rejects: list[tuple[int, Reject]] = []
    seen: set[str] = set()
    for row, raw in enumerate(found):
        try:
            sample = raw.parse()
            check_sample(sample, seen)
        except RowError as problem:
            rejects.append((row, _reject(raw, unit.source, problem)))
            continue
        seen.add(sample.sample_id)
        samples.append((row, sample))
    return samples, rejects


def _reject(raw: RawRow, source: str, problem: RowError) -> Reject:
    return Reject(
        sample_id=raw.sample_id,
        source=source,
        reason=problem.reason,
        detail=printable(problem.detail),
        reference=raw.reference,
    )


def _ranges(
    store: Store, path: str, shard: str, max_rows: int, max_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Yield rows, offset and bytes of each unit of a shard."""
    with store.open(path) as file:
        if path.endswith(".parquet"):
            for count, num_bytes in parquet.plan(file, shard, max_rows, max_bytes):
                yield count, 0, num_bytes
        elif path.endswith(".tar"):
            rows = webdataset.plan(file, store.size(path), shard)
            yield from _pack(rows, max_rows, max_bytes)
        elif path.endswith(".jsonl"):
            yield from _pack(records.plan_lines(file, shard), max_rows, max_bytes)
        else:
            yield from _pack(records.plan_array(file, shard), max_rows, max_bytes)


def _pack(
    rows: Iterable[tuple[int, int]], max_rows: int, max_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Put neighbouring rows into ranges that keep both limits."""
    count, begin, end = 0, 0, 0
    for row_begin, row_end in rows:
        if count and (count == max_rows or row_end - begin > max_bytes):
            yield count, begin, end - begin
            count = 0
        if not count:
            begin = row_begin
        count, end = count + 1, row_end
    if count:
        yield count, begin, end - begin


def _raw_rows(unit: Unit) -> list[RawRow]:
    store, path = split_url(unit.shard)
    if path.endswith(".parquet"):
        with store.open(path) as file:
            return parquet.rows(
                file,
                store=store,
                shard=unit.shard,
                start=unit.start,
                count=unit.count,
                source=unit.source,
            )
    data = store.read(path, unit.offset, unit.num_bytes)
    if path.endswith(".tar"):
        return webdataset.rows(
            data, shard=unit.shard, offset=unit.offset, source=unit.source, count=unit.count
        )
    read = records.rows_of_lines if path.endswith(".jsonl") else records.rows_of_array
    return read(
        data,
        store=store,
        shard=unit.shard,
        offset=unit.offset,
        start=unit.start,
        source=unit.source,
    )
