"""Units: ranges of rows that are read, retried, resumed and committed as one.

Planning looks at headers, footers and line ends, never at pixels, and covers every row of every
shard exactly once. The same shards always give the same units, wherever they are mounted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample
from consomme.storage.readers import parquet, records, webdataset
from consomme.storage.readers.text import RawRow, RowError, check_sample, printable
from consomme.storage.shards import Shard, find_shards
from consomme.storage.stores.open import split_url
from consomme.storage.stores.store import Store
from consomme.storage.unit import MAX_UNIT_BYTES, MAX_UNIT_ROWS, Unit, unit_name


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


def read_samples(units: Mapping[str, Unit], wanted: Sequence[tuple[str, int]]) -> list[Sample]:
    """Read single samples: each unit once, and one unit in memory at a time.

    Args:
        units: Units by id.
        wanted: Unit id and row of each sample.

    Raises:
        DataError: A shard is gone or has changed.
    """
    found: dict[tuple[str, int], Sample] = {}
    for unit_id in dict.fromkeys(unit_id for unit_id, _ in wanted):
        samples = dict(read_unit(units[unit_id])[0])
        found |= {place: samples[place[1]] for place in wanted if place[0] == unit_id}
    return [found[place] for place in wanted]
