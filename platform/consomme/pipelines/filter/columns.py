"""A store of the columns of whole runs that can be read in chunks, as often as a decision needs.

The files of the runs are read once, and their columns are written to plain local files: twelve
bytes per sample and four more per numeric column. Otherwise every pass would open the hundred
thousand files of a hundred million samples again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.places import Scratch
from consomme.pipelines.filter.column_file import ColumnFile
from consomme.pipelines.filter.inputs import SOURCE, InputRuns
from consomme.pipelines.filter.join import joined_columns
from consomme.storage.sidecar import ID_HASH
from consomme.storage.unit import Unit

CHUNK_ROWS = 1 << 20
_OWN = ("row", ID_HASH)


class ColumnStore:
    """Columns of runs on local disk; a context manager that removes its files."""

    def __init__(self, runs: InputRuns, columns: Sequence[str]) -> None:
        """Read the runs' files once.

        Args:
            runs: Finished runs.
            columns: Names of columns, as policies name them.

        Raises:
            DataError: There are no scores, the runs do not match, or a column is missing or has a
                type that no policy can use.
        """
        self.runs = runs
        self.units: list[Unit] = []
        self.sizes: list[int] = []
        self.num_rows = 0
        self.has_source = SOURCE in columns
        self._scratch = Scratch()
        self._files: dict[str, ColumnFile] = {}
        try:
            self._fill([name for name in dict.fromkeys(columns) if name != SOURCE])
        except BaseException:
            # Leave nothing on disk, whatever the error.
            self._scratch.close()
            raise

    def __enter__(self) -> ColumnStore:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        self._scratch.close()

    def chunks(self) -> Iterator[tuple[Mapping[str, NDArray[Any]], NDArray[np.uint64]]]:
        """Yield columns and hashes of several units at a time, in the order of units."""
        for _, columns, hash_N in self.parts():
            yield columns, hash_N

    def parts(
        self,
    ) -> Iterator[tuple[range, Mapping[str, NDArray[Any]], NDArray[np.uint64]]]:
        """Yield the same as `chunks`, preceded by the range of units."""
        at = 0
        for group in self._groups():
            rows = sum(self.sizes[k] for k in group)
            columns = {
                name: file.read(at, rows) for name, file in self._files.items() if name not in _OWN
            }
            if self.has_source:
                columns[SOURCE] = self._sources(group)
            yield group, columns, self._files[ID_HASH].read(at, rows)
            at += rows

    def kept_rows(self, group: range, mask_N: NDArray[np.bool_], at: int) -> Iterator[Any]:
        """Yield each unit of a chunk with the rows that a mask keeps.

        Args:
            group: Range of units, from `parts`.
            mask_N: One truth value per sample of the chunk.
            at: Number of samples before the chunk.
        """
        row_N = self._files["row"].read(at, len(mask_N))
        begin = 0
        for k in group:
            end = begin + self.sizes[k]
            yield self.units[k], row_N[begin:end][mask_N[begin:end]]
            begin = end

    def whole(self, name: str) -> NDArray[Any]:
        """Return a column of all samples."""
        if name == SOURCE:
            return self._sources(range(len(self.units)))
        return self._files[name].read(0, self.num_rows)

    def place(self, number: int) -> tuple[Unit, int]:
        """Return the unit of a sample and its row there, by its index in the store."""
        ends = np.cumsum(self.sizes)
        k = int(np.searchsorted(ends, number, side="right"))
        return self.units[k], int(self._files["row"].read(number, 1)[0])

    def _fill(self, columns: Sequence[str]) -> None:
        folder = self._scratch.path
        try:
            for unit, table in joined_columns(self.runs, columns):
                self.units.append(unit)
                self.sizes.append(table.num_rows)
                self.num_rows += table.num_rows
                for name in (*_OWN, *columns):
                    if name not in self._files:
                        # A column's name need not be a valid file name.
                        path = folder / str(len(self._files))
                        self._files[name] = ColumnFile(
                            path, name, self.runs.scores, keep_dtype=name in _OWN
                        )
                    self._files[name].add(table[name])
        finally:
            for file in self._files.values():
                file.close()
        if not self.num_rows:
            raise DataError(f"{self.runs.scores}: found no committed scores; has the run begun?")

    def _sources(self, group: range) -> NDArray[Any]:
        names = np.array([self.units[k].source for k in group], dtype=object)
        repeated: NDArray[Any] = np.repeat(names, [self.sizes[k] for k in group])
        return repeated

    def _groups(self) -> Iterator[range]:
        begin = rows = 0
        for k, size in enumerate(self.sizes):
            if rows and rows + size > CHUNK_ROWS:
                yield range(begin, k)
                begin, rows = k, 0
            rows += size
        yield range(begin, len(self.sizes))
