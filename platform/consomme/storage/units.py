"""Plan the units of shards, and read them.

Planning reads headers, footers and line ends, never pixels, and covers every row of every shard
exactly once. The same shards always give the same units, wherever they are mounted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample, printable
from consomme.storage.readers import arrow_stream, parquet, records, webdataset
from consomme.storage.readers.check import check_sample
from consomme.storage.readers.record import Context
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.row_groups import open_shard
from consomme.storage.reading import Reading
from consomme.storage.shards import Shard, find_shards
from consomme.storage.stores.open import split_url
from consomme.storage.stores.store import Store
from consomme.storage.unit import MAX_UNIT_BYTES, MAX_UNIT_ROWS, Unit, unit_name


def plan_units(
    inputs: Sequence[str],
    source: str,
    max_rows: int = MAX_UNIT_ROWS,
    max_bytes: int = MAX_UNIT_BYTES,
    reading: str = "",
) -> list[Unit]:
    """Split the shards of some inputs into units, in memory; for data sets of modest size.

    Args:
        inputs: Files, folders, globs and brace ranges; see `consomme.storage.shards`.
        source: Name of the data set.
        max_rows: Maximum rows per unit.
        max_bytes: Maximum bytes per unit, unless a single row has more. Images that a JSON file
            refers to do not count, because their sizes are unknown.
        reading: How records become samples: `Reading.for_units`.

    Returns:
        Units in the order of inputs, shards and rows.

    Raises:
        RecipeError: An input matches nothing.
        DataError: A shard is not readable.
    """
    shards = find_shards(inputs, source)
    return [unit for shard in shards for unit in plan_shard(shard, max_rows, max_bytes, reading)]


def plan_shard(
    shard: Shard,
    max_rows: int = MAX_UNIT_ROWS,
    max_bytes: int = MAX_UNIT_BYTES,
    reading: str = "",
) -> list[Unit]:
    """Split one shard into units; see `plan_units`.

    If each caption of a list is to be a sample, units are read for their captions once, so that
    every sample has a row.
    """
    store, path = split_url(shard.url)
    units, start = [], 0
    for count, offset, num_bytes in _ranges(
        store, path, shard.url, max_rows, max_bytes, Reading.of_unit(reading)
    ):
        units.append(
            Unit(
                unit_id=unit_name(shard, start, reading),
                source=shard.source,
                shard=shard.url,
                start=start,
                count=count,
                num_bytes=num_bytes,
                offset=offset,
                reading=reading,
            )
        )
        start += count
    if Reading.of_unit(reading).captions == "each":
        return [part for unit in units for part in _by_samples(shard, unit, max_rows)]
    return units


def _by_samples(shard: Shard, unit: Unit, max_rows: int) -> Iterator[Unit]:
    """Split a unit of records into units in which each caption has a row of its own."""
    raw_rows = _raw_rows(unit)
    counts = [raw.count() for raw in raw_rows]
    first = 0
    for last in range(1, len(counts) + 1):
        if last < len(counts) and sum(counts[first : last + 1]) <= max_rows:
            continue
        begin = raw_rows[first].begin if first else unit.offset
        end = raw_rows[last].begin if last < len(counts) else unit.offset + unit.num_bytes
        # Parquet is addressed by row, and its bytes are an estimate.
        by_row = unit.num_bytes * (last - first) // len(counts)
        is_by_row = not raw_rows[-1].begin and len(counts) > 1
        yield replace(
            unit,
            unit_id=unit_name(shard, unit.start + first, unit.reading),
            start=unit.start + first,
            count=sum(counts[first:last]),
            num_records=last - first,
            offset=unit.offset if is_by_row else begin,
            num_bytes=by_row if is_by_row else end - begin,
        )
        first = last


def read_unit(unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read one unit.

    Every row is returned exactly once, as a sample or as a reject. Images are not decoded here.

    Returns:
        Samples and rejects, each with its row in the unit.

    Raises:
        DataError: The shard was removed or changed after planning.
    """
    try:
        raw_rows = _raw_rows(unit)
    except FileNotFoundError as error:
        raise DataError(
            f"{unit.shard}: the shard is gone; it was removed after planning"
        ) from error
    _check_count(unit, len(raw_rows), unit.num_records or unit.count)
    reading = Reading.of_unit(unit.reading)
    samples: list[tuple[int, Sample]] = []
    rejects: list[tuple[int, Reject]] = []
    row = 0
    for raw in raw_rows:
        for found in _parsed(raw, reading):
            if isinstance(found, RowError):
                rejects.append((row, _reject(raw, unit.source, found)))
            else:
                samples.append((row, found))
            row += 1
    _check_count(unit, row, unit.count)
    return samples, rejects


def _parsed(raw: RawRow, reading: Reading) -> list[Sample | RowError]:
    """Parse a record; if it has no samples, return what is wrong once for each of them."""
    try:
        found = raw.parse()
    except RowError as problem:
        return [problem] * raw.count()
    return [one if isinstance(one, RowError) else _checked(one, reading) for one in found]


def _checked(sample: Sample, reading: Reading) -> Sample | RowError:
    try:
        check_sample(sample, reading)
    except RowError as problem:
        return problem
    return sample


def _check_count(unit: Unit, found: int, planned: int) -> None:
    if found != planned:
        raise DataError(
            f"{unit.shard}: found {found} rows from row {unit.start}, planned {planned}; the shard"
            " changed after planning"
        )


def _reject(raw: RawRow, source: str, problem: RowError) -> Reject:
    try:
        own_id = raw.own_id()
    except RowError:
        own_id = ""
    return Reject(
        sample_id=printable(own_id) or raw.sample_id,
        source=source,
        reason=problem.reason,
        detail=printable(problem.detail),
        reference=raw.reference,
    )


def _ranges(
    store: Store, path: str, shard: str, max_rows: int, max_bytes: int, reading: Reading
) -> Iterator[tuple[int, int, int]]:
    """Yield the row count, offset and bytes of each unit of a shard."""
    with store.open(path) as file:
        if path.endswith(".parquet"):
            for count, num_bytes in parquet.plan(file, shard, max_rows, max_bytes, reading):
                yield count, 0, num_bytes
        elif path.endswith(".arrow"):
            yield from arrow_stream.plan(file, shard, max_rows, max_bytes, reading)
        elif path.endswith(".tar"):
            rows = webdataset.plan(file, store.size(path), shard)
            yield from _pack_rows(rows, max_rows, max_bytes)
        elif path.endswith(".jsonl"):
            yield from _pack_rows(records.plan_lines(file, shard), max_rows, max_bytes)
        else:
            yield from _pack_rows(records.plan_array(file, shard), max_rows, max_bytes)


def _pack_rows(
    rows: Iterable[tuple[int, int]], max_rows: int, max_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Pack contiguous rows into ranges within both limits."""
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
    context = Context(
        shard=unit.shard,
        store=store,
        source=unit.source,
        reading=Reading.of_unit(unit.reading),
    )
    count = unit.num_records or unit.count
    if path.endswith(".parquet"):
        with open_shard(store, path, unit.shard, unit.start) as reader:
            return parquet.rows(reader, context, start=unit.start, count=count)
    if path.endswith(".arrow"):
        return arrow_stream.rows(
            store,
            path,
            context,
            offset=unit.offset,
            num_bytes=unit.num_bytes,
            start=unit.start,
            count=count,
        )
    data = store.read(path, unit.offset, unit.num_bytes)
    if path.endswith(".tar"):
        return webdataset.rows(data, context, offset=unit.offset, count=count)
    read = records.rows_of_lines if path.endswith(".jsonl") else records.rows_of_array
    return read(data, context, offset=unit.offset, start=unit.start)


def read_samples(units: Mapping[str, Unit], positions: Sequence[tuple[str, int]]) -> list[Sample]:
    """Read individual samples; each unit is read once, and one is in memory at a time.

    Args:
        units: Units by id.
        positions: Unit id and row of each sample.

    Returns:
        The samples, in the order of `positions`.

    Raises:
        DataError: A shard was removed or changed after planning.
    """
    samples: dict[tuple[str, int], Sample] = {}
    for unit_id in dict.fromkeys(unit_id for unit_id, _ in positions):
        by_row = dict(read_unit(units[unit_id])[0])
        samples |= {(key, row): by_row[row] for key, row in positions if key == unit_id}
    return [samples[position] for position in positions]
