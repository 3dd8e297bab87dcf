"""Walk over the columns of whole runs a few megabytes at a time, as often as a decision needs.

One decision is made here: the files are read once and their columns laid into plain files, twelve
bytes per sample and four more per column of numbers. Otherwise the hundred thousand files of a
hundred million samples would be opened anew for each walk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.pipelines.filter.column_file import ColumnFile
from consomme.pipelines.filter.inputs import SOURCE, Runs
from consomme.pipelines.filter.join import joined_columns
from consomme.storage.sidecar import ID_HASH
from consomme.storage.unit import Unit

CHUNK_ROWS = 1 << 20
_OWN = ("row", ID_HASH)


class ColumnStore:
    """Columns of runs, on the local disk. Close it, or use it in a `with` block."""

    def __init__(self, runs: Runs, columns: Sequence[str]) -> None:
        """Read the files once.

        Args:
            runs: Finished runs.
            columns: Which columns; names as policies say them.

        Raises:
            DataError: There are no scores, the runs do not fit together, or a column is missing or
                holds what no policy can use.
        """
        self.runs = runs
        self.units: list[Unit] = []
        self.sizes: list[int] = []
        self.num_rows = 0
        self.has_source = SOURCE in columns
        self._scratch = tempfile.TemporaryDirectory(prefix="consomme-scores-")
        self._spools: dict[str, ColumnFile] = {}
        try:
            self._spool([name for name in dict.fromkeys(columns) if name != SOURCE])
        except BaseException:
            # Whatever it was, nothing stays on the disk; it is raised again.
            self._scratch.cleanup()
            raise

    def __enter__(self) -> ColumnStore:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        self._scratch.cleanup()

    def chunks(self) -> Iterator[tuple[Mapping[str, NDArray[Any]], NDArray[np.uint64]]]:
        """Yield columns and hashes of some units at a time, in the order of units."""
        for _, columns, hash_N in self.parts():
            yield columns, hash_N

    def parts(
        self,
    ) -> Iterator[tuple[range, Mapping[str, NDArray[Any]], NDArray[np.uint64]]]:
        """Yield the same, and before it which units they are."""
        at = 0
        for some in self._groups():
            rows = sum(self.sizes[k] for k in some)
            columns = {
                name: spool.read(at, rows)
                for name, spool in self._spools.items()
                if name not in _OWN
            }
            if self.has_source:
                columns[SOURCE] = self._sources(some)
            yield some, columns, self._spools[ID_HASH].read(at, rows)
            at += rows

    def kept_rows(self, some: range, mask_N: NDArray[np.bool_], at: int) -> Iterator[Any]:
        """Yield each unit of a part with the rows that a mask keeps.

        Args:
            some: Which units, from `parts`.
            mask_N: One truth value per sample of the part.
            at: Samples before the part.
        """
        row_N = self._spools["row"].read(at, len(mask_N))
        begin = 0
        for k in some:
            end = begin + self.sizes[k]
            yield self.units[k], row_N[begin:end][mask_N[begin:end]]
            begin = end

    def whole(self, name: str) -> NDArray[Any]:
        """Return one column of all samples."""
        if name == SOURCE:
            return self._sources(range(len(self.units)))
        return self._spools[name].read(0, self.num_rows)

    def place(self, number: int) -> tuple[Unit, int]:
        """Return the unit of a sample, counted from 0 in the order of walks, and its row there."""
        ends = np.cumsum(self.sizes)
        k = int(np.searchsorted(ends, number, side="right"))
        return self.units[k], int(self._spools["row"].read(number, 1)[0])

    def _spool(self, columns: Sequence[str]) -> None:
        folder = Path(self._scratch.name)
        try:
            for unit, table in joined_columns(self.runs, columns):
                self.units.append(unit)
                self.sizes.append(table.num_rows)
                self.num_rows += table.num_rows
                for name in (*_OWN, *columns):
                    if name not in self._spools:
                        # A column's name may be no name for a file.
                        path = folder / str(len(self._spools))
                        self._spools[name] = ColumnFile(
                            path, name, self.runs.scores, as_it_is=name in _OWN
                        )
                    self._spools[name].add(table[name])
        finally:
            for spool in self._spools.values():
                spool.close()
        if not self.num_rows:
            raise DataError(f"{self.runs.scores}: found no committed scores; has the run begun?")

    def _sources(self, some: range) -> NDArray[Any]:
        names = np.array([self.units[k].source for k in some], dtype=object)
        repeated: NDArray[Any] = np.repeat(names, [self.sizes[k] for k in some])
        return repeated

    def _groups(self) -> Iterator[range]:
        begin = rows = 0
        for k, size in enumerate(self.sizes):
            if rows and rows + size > CHUNK_ROWS:
                yield range(begin, k)
                begin, rows = k, 0
            rows += size
        yield range(begin, len(self.sizes))
