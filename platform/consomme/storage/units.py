"""Plan the units of shards, and read them.

Planning reads headers, footers and line ends, never pixels, and covers every row of every shard
exactly once. The same shards always give the same units, wherever they are mounted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample, printable
from consomme.storage import formats
from consomme.storage.image_folder import split_shard
from consomme.storage.layouts import ShardLayout
from consomme.storage.readers import arrow_stream, parquet
from consomme.storage.readers.check import check_sample
from consomme.storage.readers.record import Make
from consomme.storage.readers.row import Gap, Lost, RawRow, RowError, UnreadableShardError
from consomme.storage.readers.table_columns import CheckNames, check_columns
from consomme.storage.reading import Reading
from consomme.storage.repeats import Repeats, repeated_rows, repeats_between, suffix_of
from consomme.storage.shards import Shard, find_shards
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
    check: CheckNames = check_columns,
) -> list[Unit]:
    """Split one shard into units; see `plan_units`.

    Args:
        shard: The shard.
        max_rows: See `plan_units`, as for the next two.
        max_bytes: See there.
        reading: See there.
        check: Checks the names of the columns of a table.

    A shard that cannot be opened is one unit of one row, a reject. If each caption of a list is to
    be a sample, units are read for their captions once, so that every sample has a row.
    """
    _, path = split_shard(shard.url)
    whole = Unit(
        unit_id=unit_name(shard, 0, reading),
        source=shard.source,
        shard=shard.url,
        start=0,
        count=1,
        num_bytes=shard.size,
        reading=reading,
    )
    try:
        layout = formats.find_layout(shard.url, Reading.of_unit(reading), check)
        whole = replace(whole, layout=layout.for_units(path))
        units = list(_cut(shard, whole, layout, max_rows, max_bytes, check))
    except UnreadableShardError as error:
        lost = Lost("shard_unreadable", formats.explain(shard.url, error.detail))
        return [_lost_unit(whole, shard, lost, 0)]
    if Reading.of_unit(reading).captions == "each":
        return [part for unit in units for part in _by_samples(shard, unit, max_rows)]
    return units


def _cut(
    shard: Shard,
    whole: Unit,
    layout: ShardLayout,
    max_rows: int,
    max_bytes: int,
    check: CheckNames,
) -> Iterator[Unit]:
    """Yield the units of a shard's records, and those of what is lost of it."""
    start, lost = 0, []
    repeats = Repeats(Reading.of_unit(whole.reading))
    if layout.kind == "parquet":
        ranges = _row_groups(shard, max_rows, max_bytes, whole.reading, check)
        if check is check_columns:
            _add_ids(shard, whole.reading, repeats, parquet.ids)
    elif layout.kind == "arrow":
        ranges = _batches(shard, max_rows, max_bytes, whole.reading, check)
        if check is check_columns:
            _add_ids(shard, whole.reading, repeats, arrow_stream.ids)
    elif layout.kind in formats.BY_ROW:
        ranges = _counted(formats.num_records(shard.url, layout), shard.size, max_rows)
    else:
        found: list[Lost] = []
        records = _records_of(formats.spans(shard.url, layout), found, repeats)
        ranges = _pack_rows(records, max_rows, max_bytes)
        lost = found
    units = []
    for count, offset, num_bytes in ranges:
        units.append(
            replace(
                whole,
                unit_id=unit_name(shard, start, whole.reading),
                start=start,
                count=count,
                offset=offset,
                num_bytes=num_bytes,
            )
        )
        start += count
    yield from repeats.marked(units)
    for number, one in enumerate(lost):
        yield _lost_unit(whole, shard, one, start + number)


def _records_of(
    spans: Iterator[formats.Span | Lost | Gap], lost: list[Lost], repeats: Repeats
) -> Iterator[tuple[int, int] | None]:
    """Yield offset and end of each record, and None where a unit has to end."""
    for span in spans:
        if isinstance(span, Lost):
            lost.append(span)
        elif isinstance(span, Gap):
            yield None
        else:
            begin, end, value = span
            repeats.add(value)
            yield begin, end


def _row_groups(
    shard: Shard, max_rows: int, max_bytes: int, reading: str, check: CheckNames
) -> Iterator[tuple[int, int, int]]:
    store, path = split_shard(shard.url)
    options = Reading.of_unit(reading)
    with store.open(path) as file:
        for count, num_bytes in parquet.plan(file, shard.url, max_rows, max_bytes, options, check):
            yield count, 0, num_bytes


def _add_ids(
    shard: Shard, reading: str, repeats: Repeats, ids: Callable[..., Iterator[Any]]
) -> None:
    store, path = split_shard(shard.url)
    with store.open(path) as file:
        for record in ids(file, shard.url, Reading.of_unit(reading)):
            repeats.add(record)


def _batches(
    shard: Shard, max_rows: int, max_bytes: int, reading: str, check: CheckNames
) -> Iterator[tuple[int, int, int]]:
    store, path = split_shard(shard.url)
    with store.open(path) as file:
        options = Reading.of_unit(reading)
        yield from arrow_stream.plan(file, shard.url, max_rows, max_bytes, options, check)


def _counted(num_records: int, size: int, max_rows: int) -> Iterator[tuple[int, int, int]]:
    for start in range(0, num_records, max_rows):
        count = min(max_rows, num_records - start)
        yield count, 0, size * count // num_records


def _lost_unit(whole: Unit, shard: Shard, lost: Lost, start: int) -> Unit:
    layout = ShardLayout(kind="lost", reason=lost.reason, detail=lost.detail)
    return replace(
        whole,
        unit_id=unit_name(shard, start, whole.reading),
        start=start,
        count=1,
        num_bytes=shard.size if lost.reason == "shard_unreadable" else 0,
        layout=layout.for_units(""),
    )


def _by_samples(shard: Shard, unit: Unit, max_rows: int) -> Iterator[Unit]:
    """Split a unit of records into units in which each caption has a row of its own."""
    layout = ShardLayout.of_unit(unit.layout, split_shard(unit.shard)[1])
    if layout.kind == "lost":
        yield unit
        return
    raw_rows = formats.raw_rows(unit)
    counts = [raw.count() for raw in raw_rows]
    first, total = 0, 0
    for last, count in enumerate(counts, start=1):
        total += count
        if last < len(counts) and total + counts[last] <= max_rows:
            continue
        offset, num_bytes = unit.offset, unit.num_bytes * (last - first) // len(counts)
        if layout.kind == "arrow":
            # Record batches are read whole.
            num_bytes = unit.num_bytes
        elif layout.kind not in formats.BY_ROW:
            offset = raw_rows[first].begin if first else unit.offset
            is_last = last == len(counts)
            end = unit.offset + unit.num_bytes if is_last else raw_rows[last].begin
            num_bytes = end - offset
        yield replace(
            unit,
            unit_id=unit_name(shard, unit.start + first, unit.reading),
            start=unit.start + first,
            count=total,
            num_records=last - first,
            offset=offset,
            num_bytes=num_bytes,
            repeats=repeats_between(unit.repeats, first, last),
        )
        first, total = last, 0


def read_unit(unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read one unit.

    Every row is returned exactly once, as a sample or as a reject. Images are not decoded here.

    Returns:
        Samples and rejects, each with its row in the unit.

    Raises:
        DataError: The shard was removed or changed after planning.
    """
    return read_records(unit)


def read_records(
    unit: Unit, make: Make | None = None
) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read one unit, as `read_unit` does.

    Args:
        unit: The unit.
        make: Makes the samples of a record, which are not checked then; None makes those of a data
            set of images.
    """
    layout = ShardLayout.of_unit(unit.layout, split_shard(unit.shard)[1])
    if layout.kind == "lost":
        return [], [(0, _lost(unit, layout))]
    try:
        raw_rows = formats.raw_rows(unit, make)
    except FileNotFoundError as error:
        raise DataError(
            f"{unit.shard}: the shard is gone; it was removed after planning"
        ) from error
    _check_count(unit, len(raw_rows), unit.num_records or unit.count)
    reading = Reading.of_unit(unit.reading)
    samples: list[tuple[int, Sample]] = []
    rejects: list[tuple[int, Reject]] = []
    row = 0
    repeated = repeated_rows(unit.repeats) if make is None else frozenset()
    for number, raw in enumerate(raw_rows):
        suffix = suffix_of(unit.start + number) if number in repeated else ""
        for found in _parsed(raw, reading if make is None else None):
            if isinstance(found, RowError):
                rejects.append((row, _reject(raw, unit.source, found, suffix)))
            else:
                named = replace(found, sample_id=found.sample_id + suffix) if suffix else found
                samples.append((row, named))
            row += 1
    _check_count(unit, row, unit.count)
    return samples, rejects


def _parsed(raw: RawRow, reading: Reading | None) -> list[Sample | RowError]:
    """Parse a record; if it has no samples, return what is wrong once for each of them.

    Args:
        raw: The record.
        reading: Limits by which samples are checked; None checks none.
    """
    try:
        found = raw.parse()
    except RowError as problem:
        return [problem] * raw.count()
    if reading is None:
        return found
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


def _lost(unit: Unit, layout: ShardLayout) -> Reject:
    name = unit.shard.rstrip("/").rpartition("/")[2]
    return Reject(
        sample_id=printable(name),
        source=unit.source,
        reason=layout.reason,
        detail=printable(layout.detail),
        reference=f"{unit.shard}@{unit.offset}+{unit.num_bytes}",
    )


def _reject(raw: RawRow, source: str, problem: RowError, suffix: str) -> Reject:
    try:
        own_id = raw.own_id()
    except RowError:
        own_id = ""
    return Reject(
        sample_id=(printable(own_id) or raw.sample_id) + suffix,
        source=source,
        reason=problem.reason,
        detail=printable(problem.detail),
        reference=raw.reference,
    )


def _pack_rows(
    rows: Iterable[tuple[int, int] | None], max_rows: int, max_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Pack contiguous rows into ranges within both limits; a range ends before a None."""
    count, begin, end = 0, 0, 0
    for row in rows:
        if count and (row is None or count == max_rows or row[1] - begin > max_bytes):
            yield count, begin, end - begin
            count = 0
        if row is None:
            continue
        row_begin, row_end = row
        if not count:
            begin = row_begin
        count, end = count + 1, row_end
    if count:
        yield count, begin, end - begin


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
