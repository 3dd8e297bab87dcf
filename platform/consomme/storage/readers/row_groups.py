"""Read rows of a Parquet shard, and decode each row group once for a run of consecutive units.

Arrow cannot begin in the middle of a row group, so a range that begins there decodes all rows
before it. A process therefore keeps the shards that it read last open, each at the row that follows
its last range: the next range of the same row group continues there. Ranges may come in any order;
one that lies before the place decodes its row group from the start again.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import ConsommeError, DataError
from consomme.storage.readers.arrow_columns import left_out, tell_left_out, to_records
from consomme.storage.readers.held_range import HeldRange
from consomme.storage.readers.row import RowError, UnreadableShardError
from consomme.storage.readers.text import MAX_SAMPLE_BYTES
from consomme.storage.stores.store import Store

_BATCH = 256
"""Maximum rows per decoded batch; fewer if rows are large."""

_BATCH_BYTES = 16 * 2**20
"""Maximum bytes per decoded batch, by the average row size."""

_WHOLE_BYTES = 128 * 2**20
"""Row groups up to this size that one range reads are fetched at once, which takes few requests to
an object store."""

_KEPT_BYTES = 32 * 2**20
"""The same for row groups of several ranges, whose bytes stay in memory between these."""

_BUFFER = 8 * 2**20
"""Fetch size within larger row groups; memory is then one page and one batch."""

_MAX_OPEN = 2
"""Shards, or places in a shard, that a process keeps between ranges."""

Rows = Any
"""A record batch, or the `RowError` of one row."""


@dataclass
class _Place:
    """How far a row group is decoded."""

    group: int
    batches: Iterator[pa.RecordBatch]
    row: int = 0
    """Next row of the row group."""

    rest: pa.RecordBatch | None = None
    """Rows from `row` on that are decoded already."""

    problem: str = ""
    """Why no further row can be decoded."""


class ShardReader:
    """An open Parquet shard; for one thread at a time."""

    def __init__(self, file: BinaryIO, shard: str) -> None:
        """Read the footer.

        Args:
            file: The whole shard.
            shard: URL of the shard, for messages.

        Raises:
            UnreadableShardError: The footer is not readable.
        """
        self.shard = shard
        self._file = file
        self._held = HeldRange(file)
        self._parquet = _open(self._held)
        whole: pa.Schema = self._parquet.schema_arrow
        reasons = left_out(whole)
        for index, why in reasons.items():
            tell_left_out(whole.field(index).name, why, shard.rpartition("/")[0])
        kept = [field for index, field in enumerate(whole) if index not in reasons]
        self.schema = pa.schema(kept)
        """Of the columns that are read."""

        self.left_out = {whole.field(index).name: why for index, why in reasons.items()}
        """Columns that are not read, each with the reason."""

        # Names select by prefix, so that a column may come that is not wanted; see `_wanted`.
        self._names = list(self.schema.names) if reasons else None
        self.groups = _group_sizes(self._parquet, file)
        """Rows and uncompressed bytes of the row groups."""

        self._starts = [0, *accumulate(rows for rows, _ in self.groups)]
        self._place: _Place | None = None

    def close(self) -> None:
        """Close the file."""
        self._leave()
        self._file.close()

    def num_skipped(self, start: int) -> int | None:
        """Return the rows to skip up to row `start`; None if its row group begins anew."""
        place = self._place
        if place is None or place.group != self._group_of(start):
            return None
        skipped = start - self._starts[place.group] - place.row
        return skipped if skipped >= 0 else None

    @property
    def is_between(self) -> bool:
        """Whether it stands within a row group, at a place that is worth keeping."""
        return self._place is not None

    def read(self, start: int, count: int) -> Iterator[Rows]:
        """Yield the rows from `start` on, in order: batches of several, or the problem of one."""
        row, end = start, min(start + count, self._starts[-1])
        while row < end:
            group = self._group_of(row)
            stop = min(end, self._starts[group + 1])
            yield from self._read_group(
                group, row - self._starts[group], stop - self._starts[group]
            )
            row = stop

    def values(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the values of a few small columns, of all rows in order.

        Raises:
            UnreadableShardError: They cannot be decoded.
        """
        try:
            for batch in self._parquet.iter_batches(8192, columns=columns, use_threads=False):
                for record in to_records(batch.select(columns), frozenset()):
                    yield record if isinstance(record, dict) else {}
        except Exception as error:
            # As in `_open`: many exception types mean damage.
            raise classify_error(error, "the columns of ids") from error

    def _group_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _read_group(self, group: int, begin: int, end: int) -> Iterator[Rows]:
        num_rows, num_bytes = self.groups[group]
        if num_bytes > num_rows * MAX_SAMPLE_BYTES:
            detail = f"{num_bytes:,} bytes in a row group of {num_rows:,} rows"
            yield from [RowError("record_too_large", detail)] * (end - begin)
            return
        if self.num_skipped(self._starts[group] + begin) is None:
            self._enter(group, is_whole=(begin, end) == (0, num_rows))
        place = self._place
        assert place is not None
        while place.row < end and self._fill(place):
            assert place.rest is not None
            first = max(begin - place.row, 0)
            taken = min(end - place.row, place.rest.num_rows)
            if first < taken:
                yield self._wanted(place.rest.slice(first, taken - first))
            place.row += taken
            left = place.rest.num_rows - taken
            place.rest = place.rest.slice(taken) if left else None
        problem, missing = place.problem, end - max(place.row, begin)
        if end == num_rows:
            self._leave()
        yield from [RowError("record_malformed", problem)] * max(missing, 0)

    def _wanted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns of a batch that are read."""
        if self._names is None:
            return batch
        kept = left_out(batch.schema)
        arrays = {
            field.name: column
            for index, (field, column) in enumerate(zip(batch.schema, batch.columns, strict=True))
            if index not in kept and field.name in self._names
        }
        return pa.RecordBatch.from_pydict(arrays)

    def _enter(self, group: int, *, is_whole: bool) -> None:
        """Begin to decode a row group."""
        self._leave()
        num_rows, num_bytes = self.groups[group]
        reader, limit = self._parquet, _WHOLE_BYTES if is_whole else _KEPT_BYTES
        if num_bytes > limit:
            reader = _open(HeldRange(self._file), is_streamed=True)
        elif span := _span(self._parquet, group, limit):
            self._held.hold(*span)
        size = max(1, min(_BATCH, _BATCH_BYTES * num_rows // max(1, num_bytes)))
        batches = reader.iter_batches(
            size, row_groups=[group], columns=self._names, use_threads=False
        )
        self._place = _Place(group=group, batches=batches)

    def _leave(self) -> None:
        self._place = None
        self._held.release()

    def _fill(self, place: _Place) -> bool:
        """Decode a batch if none is left; whether there is one."""
        if place.rest is None and not place.problem:
            try:
                place.rest = next(place.batches, None)
            # As in `_open`: many exception types mean damage; anything else is raised again.
            except Exception as error:
                if not isinstance(classify_error(error, "the row group"), DataError):
                    self._leave()
                    raise
                place.problem = f"the row group cannot be read: {error}"
            else:
                if place.rest is None:
                    place.problem = f"the row group ends after {place.row} rows"
        return place.rest is not None


@dataclass(frozen=True)
class _Version:
    shard: str
    size: int
    version: str


_kept: list[tuple[_Version, ShardReader]] = []
"""Shards that wait for their next range, the last used at the end."""

_lock = threading.Lock()


@contextmanager
def open_shard(store: Store, path: str, shard: str, start: int) -> Iterator[ShardReader]:
    """Open a shard for a range of rows; it stays open for the next range of the same row group.

    Args:
        store: The store that holds it.
        path: Its path there.
        shard: Its URL.
        start: First row of the range.

    Raises:
        FileNotFoundError: The shard is gone.
        UnreadableShardError: The footer is not readable.
    """
    try:
        info = store.info(path)
    except FileNotFoundError:
        # Opening says what is there instead, such as a pipe.
        store.open(path).close()
        raise
    version = _Version(shard, info.size, info.version)
    reader = _take(version, start)
    if reader is None:
        file = store.open(path)
        try:
            reader = ShardReader(file, shard)
        except UnreadableShardError as error:
            file.close()
            raise DataError(f"{shard}: {error.detail}; the shard changed after planning") from error
        except BaseException:
            file.close()
            raise
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    if reader.is_between:
        _keep(version, reader)
    else:
        reader.close()


def _take(version: _Version, start: int) -> ShardReader | None:
    """Take the reader that has the fewest rows to skip, if one can continue."""
    with _lock:
        able = [
            (skipped, number)
            for number, (known, reader) in enumerate(_kept)
            if known == version and (skipped := reader.num_skipped(start)) is not None
        ]
        return _kept.pop(min(able)[1])[1] if able else None


def _keep(version: _Version, reader: ShardReader) -> None:
    with _lock:
        _kept.append((version, reader))
        dropped = _kept[:-_MAX_OPEN]
        del _kept[:-_MAX_OPEN]
    for _, old in dropped:
        old.close()


def _open(file: HeldRange, *, is_streamed: bool = False) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            file,
            pre_buffer=False,
            buffer_size=_BUFFER if is_streamed else 0,
            page_checksum_verification=True,
        )
    # Arrow reports damage by many exception types; `classify_error` separates storage failures.
    except Exception as error:
        raise classify_error(error, "the footer") from error


def classify_error(error: Exception, what: str) -> Exception:
    """Return an UnreadableShardError if a file is damaged.

    If the storage or memory failed, the error itself is returned.

    Args:
        error: What reading raised.
        what: Part of the file.
    """
    is_storage = isinstance(error, OSError) and error.errno is not None
    if is_storage or isinstance(error, ConsommeError | MemoryError):
        return error
    return UnreadableShardError(f"not readable as Parquet: {what}: {error}")


def _group_sizes(parquet: pq.ParquetFile, file: BinaryIO) -> list[tuple[int, int]]:
    """List rows and uncompressed bytes of the row groups; refuse impossible footers."""
    meta = parquet.metadata
    groups = []
    for index in range(meta.num_row_groups):
        group = meta.row_group(index)
        groups.append((group.num_rows, group.total_byte_size))
    size = file.seek(0, 2)
    # Each row has a text, so there cannot be more rows than bytes.
    if any(min(group) < 0 for group in groups) or sum(rows for rows, _ in groups) > size:
        raise UnreadableShardError("not readable as Parquet: the footer states impossible sizes")
    return groups


def _span(parquet: pq.ParquetFile, group: int, limit: int) -> tuple[int, int] | None:
    """Return where the bytes of a row group begin and end; None if the footer states no such place.

    Columns that cannot be fetched in this way are read one by one, and say what is wrong.
    """
    meta = parquet.metadata.row_group(group)
    columns: list[Any] = [meta.column(k) for k in range(meta.num_columns)]
    starts = [
        min(filter(None, (one.dictionary_page_offset, one.data_page_offset)), default=0)
        for one in columns
    ]
    start = min(starts, default=0)
    end = max(
        (at + one.total_compressed_size for at, one in zip(starts, columns, strict=True)), default=0
    )
    return (start, end) if 0 < start < end <= start + limit else None
