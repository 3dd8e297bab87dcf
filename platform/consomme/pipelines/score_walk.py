"""Walk over the scores of a whole run a few megabytes at a time, as often as a decision needs.

One decision is made here: the sidecars are read once and their numbers laid into plain files,
twelve bytes per sample and a few more per column. Otherwise the hundred thousand files of a hundred
million samples would be opened anew for each walk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.storage.sidecar import ID_HASH, iter_columns
from consomme.storage.units import Unit

CHUNK_ROWS = 1 << 20
SOURCE = "source"
"""Every unit has one, so every sample has; it is no column of any file."""


class ScoreWalk:
    """Scores of a run, in numbers on the local disk. Close it, or use it in a `with` block."""

    def __init__(self, url: str, columns: Sequence[str]) -> None:
        """Read the sidecars once.

        Args:
            url: A finished score run.
            columns: Which columns; of text at most some thousand different values.

        Raises:
            DataError: There are no scores, a column is missing, or is neither numbers nor text.
        """
        self.url = url
        self.units: list[Unit] = []
        self.sizes: list[int] = []
        self.num_rows = 0
        self._scratch = tempfile.TemporaryDirectory(prefix="consomme-scores-")
        self._folder = Path(self._scratch.name)
        self._names: dict[str, dict[str, int]] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        try:
            self._spool([name for name in columns if name != SOURCE])
        except BaseException:
            # Whatever it was, nothing stays on the disk; it is raised again.
            self._scratch.cleanup()
            raise
        self.has_source = SOURCE in columns

    def __enter__(self) -> ScoreWalk:
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
            columns = {name: self._read(name, at, rows) for name in self._types if name not in _OWN}
            if self.has_source:
                names = np.array([self.units[k].source for k in some], dtype=object)
                columns[SOURCE] = np.repeat(names, [self.sizes[k] for k in some])
            yield some, columns, self._read(ID_HASH, at, rows)
            at += rows

    def kept_rows(self, some: range, mask_N: NDArray[np.bool_], at: int) -> Iterator[Any]:
        """Yield each unit of a part with the rows that a mask keeps.

        Args:
            some: Which units, from `parts`.
            mask_N: One truth value per sample of the part.
            at: Samples before the part.
        """
        row_N = self._read("row", at, len(mask_N))
        begin = 0
        for k in some:
            end = begin + self.sizes[k]
            yield self.units[k], row_N[begin:end][mask_N[begin:end]]
            begin = end

    def whole(self, name: str) -> NDArray[Any]:
        """Return one column of all samples."""
        return self._read(name, 0, self.num_rows)

    def _spool(self, columns: Sequence[str]) -> None:
        files: dict[str, Any] = {}
        try:
            for record, table in iter_columns(self.url, [*columns, ID_HASH], with_ids=False):
                self.units.append(record.unit)
                self.sizes.append(table.num_rows)
                self.num_rows += table.num_rows
                for name in ("row", ID_HASH, *columns):
                    values = self._numbers(name, table[name])
                    if name not in files:
                        files[name] = (self._folder / name).open("wb")
                        self._types[name] = values.dtype
                    files[name].write(values.tobytes())
        finally:
            for file in files.values():
                file.close()
        if not self.num_rows:
            raise DataError(f"{self.url}: found no committed scores; has the run begun?")

    def _numbers(self, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
        if pa.types.is_string(column.type):
            codes = self._names.setdefault(name, {})
            texts = ["" if text is None else text for text in column.to_pylist()]
            return np.array([codes.setdefault(text, len(codes)) for text in texts], np.int32)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(
                f"{self.url}: the column {name!r} holds {column.type}; a filter can use numbers and"
                " names"
            )
        values: NDArray[Any] = column.to_numpy()
        if name in _OWN:
            return values
        # A missing number is a score that is not there.
        return values.astype(np.float32)

    def _groups(self) -> Iterator[range]:
        begin = rows = 0
        for k, size in enumerate(self.sizes):
            if rows and rows + size > CHUNK_ROWS:
                yield range(begin, k)
                begin, rows = k, 0
            rows += size
        yield range(begin, len(self.sizes))

    def _read(self, name: str, at: int, rows: int) -> NDArray[Any]:
        kind = self._types[name]
        values = np.fromfile(self._folder / name, kind, count=rows, offset=at * kind.itemsize)
        if name in self._names:
            texts: NDArray[Any] = np.array(list(self._names[name]), dtype=object)[values]
            return texts
        return values


_OWN = ("row", ID_HASH)
