"""Sidecars: columns about samples, stored apart from them and keyed by unit and row.

One Parquet file per unit has `row`, `sample_id` and the columns that a stage computed, never
pixels. The unit id is not in the file but in the commit record that names it.
"""

import io
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.storage.ledger.commits import CommitRecord
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.store import join_url

_READ_THREADS = 8
_READ_AHEAD = 32

ID_HASH = "id_hash"
"""Column in the sidecars of every stage with a hash of source and sample id; breaks ties."""

SCORES = "scores"
"""Default kind of sidecar files; see `RunFolder.write_output`."""


def table_bytes(table: pa.Table) -> bytes:
    """Serialize a table as Parquet; the same table always gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table.combine_chunks(),
        buffer,
        row_group_size=max(1, table.num_rows),
        compression="zstd",
        # So that who reads some columns only notices if they were changed.
        write_page_checksum=True,
    )
    return buffer.getvalue()


def iter_columns(
    run_url: str,
    columns: Sequence[str],
    kind: str = SCORES,
    *,
    with_ids: bool = True,
    optional: Sequence[str] = (),
) -> Iterator[tuple[CommitRecord, pa.Table]]:
    """Yield the columns of each committed unit, in the order of unit ids; few are in memory.

    Args:
        run_url: The run that wrote the columns.
        columns: Names of the columns; `row` and `sample_id` are added and come first.
        kind: Kind of output file, as given to `RunFolder.write_output`.
        with_ids: Whether to read `sample_id`, which is most of the bytes.
        optional: Columns that come last, and are left out of the tables of files without them.

    Raises:
        DataError: A file is missing, unreadable, or lacks a column.
    """
    run = RunFolder.at(run_url)
    names = [*dict.fromkeys(["row", *(["sample_id"] if with_ids else []), *columns])]
    paths = ((record, record.path_of(kind)) for record in run.iter_commits())
    files = ((record, path) for record, path in paths if path is not None)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        pending: deque[tuple[CommitRecord, Future[pa.Table]]] = deque()
        try:
            while True:
                for record, path in itertools.islice(files, _READ_AHEAD - len(pending)):
                    pending.append((record, pool.submit(_read_table, run, path, names, optional)))
                if not pending:
                    return
                record, future = pending.popleft()
                yield record, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def column_names(run_url: str, kind: str = SCORES) -> list[str]:
    """List the columns that a run has written, according to its first file.

    Raises:
        DataError: No unit is committed, or the file is missing or unreadable.
    """
    run = RunFolder.at(run_url)
    paths = (record.path_of(kind) for record in run.iter_commits())
    path = next((path for path in paths if path is not None), None)
    if path is None:
        raise DataError(f"{run_url}: found no committed {kind}; has the run begun?")
    try:
        with run.store.open(path) as file:
            names: list[str] = pq.ParquetFile(file).schema_arrow.names
            return names
    except (OSError, pa.ArrowException) as error:
        where = join_url(run.url, path)
        raise DataError(f"{where}: a committed file cannot be read: {error}") from error


def read_columns(run_url: str, columns: Sequence[str], kind: str = SCORES) -> pa.Table:
    """Read columns of a whole run into one table.

    Args:
        run_url: The run that wrote the columns.
        columns: Names of the columns.
        kind: Kind of output file.

    Returns:
        `unit_id`, `row`, `sample_id` and the columns, in the order of unit ids and rows; committed
        units only.

    Raises:
        DataError: No unit is committed, or a file is missing, unreadable, or lacks a column.
    """
    tables = []
    for record, table in iter_columns(run_url, columns, kind):
        unit_ids = pa.array([record.unit_id] * table.num_rows, pa.string())
        tables.append(table.add_column(0, "unit_id", unit_ids))
    if not tables:
        raise DataError(f"{run_url}: found no committed {kind}; has the run begun?")
    return pa.concat_tables(tables)


def read_unit_columns(
    run: RunFolder,
    unit_id: str,
    columns: Sequence[str],
    kind: str,
    *,
    optional: Sequence[str] = (),
) -> pa.Table | None:
    """Read columns of one unit of a finished run, without reading the other units.

    Args:
        run: The run that wrote the columns.
        unit_id: The unit.
        columns: Names of the columns; `row` and `sample_id` are added and come first.
        kind: Kind of output file.
        optional: Columns that come last, and are left out if the file lacks them.

    Returns:
        The table; None if the run has no such unit.

    Raises:
        DataError: The run is not finished, or the file is unreadable or lacks a column.
    """
    record = run.find_commit(unit_id)
    path = record.path_of(kind) if record else None
    names = [*dict.fromkeys(["row", "sample_id", *columns])]
    return _read_table(run, path, names, optional) if path else None


def _read_table(
    run: RunFolder, path: str, names: Sequence[str], optional: Sequence[str] = ()
) -> pa.Table:
    where = join_url(run.url, path)
    try:
        with run.store.open(path) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            found = parquet.schema_arrow.names
            missing = [name for name in names if name not in found]
            if missing:
                raise DataError(
                    f"{where}: no column {', '.join(missing)}; "
                    f"found {', '.join(parquet.schema_arrow.names)}"
                )
            wanted = [*names, *(name for name in optional if name in found)]
            return parquet.read(columns=wanted, use_threads=False).select(wanted)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{where}: a committed file cannot be read: {error}") from error
