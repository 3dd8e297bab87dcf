"""Views: a subset of samples as one row bitmap per unit, without copying pixels.

A view is one small Parquet file in the folder of the run that made it. It contains the units
themselves, so that the kept samples can be read without any other file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.base.sample import Sample
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.moved import MovedShards
from consomme.storage.plan import pack_rows, units_table, unpack_rows
from consomme.storage.sidecar import table_bytes
from consomme.storage.stores.store import join_url
from consomme.storage.unit import Unit
from consomme.storage.units import read_unit

VIEW = "view.parquet"
"""File name of the view in its run folder."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A subset of the samples of some units."""

    entries: tuple[tuple[Unit, bytes], ...]
    """Units in order, each with a bitmap: row `r` is bit `r % 8` of byte `r // 8`."""

    @classmethod
    def from_rows(cls, units: Sequence[Unit], rows: Mapping[str, Sequence[int]]) -> "View":
        """Build a view from the kept rows of each unit.

        Args:
            units: All units, in order.
            rows: Kept rows by unit id; a unit without an entry keeps none.

        Raises:
            DataError: Rows are given for an unknown unit, or a row is not in its unit.
        """
        unknown = sorted(set(rows) - {unit.unit_id for unit in units})
        if unknown:
            raise DataError(f"rows are kept of {unknown[0]}, which is not among the units")
        return cls(
            entries=tuple((unit, pack_rows(unit, rows.get(unit.unit_id, ()))) for unit in units)
        )

    @classmethod
    def load(cls, url: str) -> "View":
        """Read the view of a run.

        Raises:
            DataError: The run has no view, or it cannot be read.
        """
        return cls(entries=tuple(cls.iter_entries(url)))

    @classmethod
    def iter_entries(cls, url: str) -> Iterator[tuple[Unit, bytes]]:
        """Yield the units of a run's view with their bitmaps; 1,024 are in memory at a time.

        Raises:
            DataError: The run has no view, or it cannot be read.
        """
        run = RunFolder.at(url)
        moved = MovedShards(run)
        try:
            with run.store.open(VIEW) as file:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                for batch in parquet.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        yield moved.unit(_unit(row)), row["bitmap"]
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{join_url(run.url, VIEW)}: not readable as a view: {error}"
            ) from error

    def save(self, run: RunFolder) -> str:
        """Write the view into a run folder and return its path there."""
        table = units_table(self.units, [bitmap for _, bitmap in self.entries])
        run.store.write(VIEW, table_bytes(table))
        return VIEW

    @property
    def num_samples(self) -> int:
        """Number of kept samples."""
        return sum(self.counts().values())

    @property
    def units(self) -> list[Unit]:
        """All units in order, including those that keep no sample."""
        return [unit for unit, _ in self.entries]

    def counts(self) -> dict[str, int]:
        """Number of kept samples by unit id."""
        return {unit.unit_id: len(unpack_rows(unit, bitmap)) for unit, bitmap in self.entries}

    def rows(self) -> Iterator[tuple[Unit, list[int]]]:
        """Yield each unit with its kept rows, ascending."""
        for unit, bitmap in self.entries:
            yield unit, unpack_rows(unit, bitmap)


def read_view_unit(unit: Unit, bitmap: bytes) -> list[tuple[int, Sample]]:
    """Read the kept samples of one unit, each with its row in the unit.

    Raises:
        DataError: A kept row is not readable: the shard changed after the view was made.
    """
    kept = unpack_rows(unit, bitmap)
    if not kept:
        return []
    samples = dict(read_unit(unit)[0])
    missing = [row for row in kept if row not in samples]
    if missing:
        raise DataError(
            f"{unit.shard}: row {unit.start + missing[0]} is in the view but is not readable; "
            "the shard changed after it was scored"
        )
    return [(row, samples[row]) for row in kept]


def _unit(row: Mapping[str, object]) -> Unit:
    return Unit.from_dict({key: value for key, value in row.items() if key != "bitmap"})
