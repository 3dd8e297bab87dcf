"""One column of all samples in a plain file on local disk, readable in any slice.

Numbers are stored as float32 (NaN for a missing one), texts as codes of a dictionary, and vectors
as rows of a memory-mapped float32 matrix (NaN for a missing one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consomme.base.errors import DataError

MAX_TEXTS = 1_000_000
"""Maximum number of distinct texts; more are not names and would fill the memory."""


class ColumnFile:
    """A column that is written unit by unit and then read."""

    def __init__(self, path: Path, name: str, where: str, *, keep_dtype: bool = False) -> None:
        """Open the file.

        Args:
            path: Path of the new file.
            name: Name of the column, for messages.
            where: The run it comes from, for messages.
            keep_dtype: Store numbers in their own type; for rows and hashes.
        """
        self.path, self.name, self.where, self.keep_dtype = path, name, where, keep_dtype
        self.file = path.open("wb")
        self.texts: dict[str, int] | None = None
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.width: int | None = None
        """Length of the vectors; None if it is not a vector column."""

        self._num_leading_nulls = 0
        """Null rows before the first value, which determines the column's type."""

        self._has_type = False

    def add(self, column: pa.ChunkedArray) -> None:
        """Write some rows.

        Raises:
            DataError: They are not numbers, names or vectors of one length.
        """
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not len(column):
            return
        if column.null_count == len(column) and _is_untyped(column.type):
            if not self._has_type:
                self._num_leading_nulls += len(column)
                return
            column = self._nulls(len(column))
        values = self._values(column)
        if not self._has_type:
            self._has_type = True
            self.dtype = values.dtype
            if self._num_leading_nulls:
                self.file.write(self._values(self._nulls(self._num_leading_nulls)).tobytes())
        self.file.write(values.tobytes())

    def close(self) -> None:
        """Finish writing; a column without any value becomes a column of missing numbers."""
        if self._num_leading_nulls and not self._has_type:
            self.file.write(np.full(self._num_leading_nulls, np.nan, np.float32).tobytes())
        self.file.close()

    def read(self, at: int, rows: int) -> NDArray[Any]:
        """Return rows from an offset; vectors are memory-mapped."""
        size = self.dtype.itemsize
        if self.width is not None:
            if not rows:
                return np.empty((0, self.width), np.float32)
            shape, offset = (rows, self.width), at * self.width * size
            return np.memmap(self.path, self.dtype, "r", offset=offset, shape=shape)
        values = np.fromfile(self.path, self.dtype, count=rows, offset=at * size)
        if self.texts is not None:
            names: NDArray[Any] = np.array(list(self.texts), dtype=object)[values]
            return names
        return values

    def _nulls(self, rows: int) -> pa.ChunkedArray:
        """Return null rows of the column's type."""
        kind = pa.float32()
        if self.texts is not None:
            kind = pa.string()
        elif self.width is not None:
            kind = pa.list_(pa.float32())
        return pa.chunked_array([pa.nulls(rows, kind)])

    def _values(self, column: pa.ChunkedArray) -> NDArray[Any]:
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self._codes(column)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return self._vectors(column, pc.list_value_length(column).drop_null().unique())
        if pa.types.is_fixed_size_list(kind):
            return self._vectors(column, pa.array([kind.list_size]))
        if pa.types.is_boolean(kind):
            column = column.cast(pa.uint8())
            kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or (
            self.texts is not None or self.width is not None
        ):
            raise self._refuse(kind)
        values: NDArray[Any] = column.to_numpy()
        return values if self.keep_dtype else values.astype(np.float32)

    def _codes(self, column: pa.ChunkedArray) -> NDArray[np.int32]:
        if self.texts is None and self._has_type:
            raise self._refuse(column.type)
        self.texts = {} if self.texts is None else self.texts
        coded = pa.concat_arrays(pc.fill_null(column, "").chunks)
        coded = coded.dictionary_encode()
        numbers = [
            self.texts.setdefault(text, len(self.texts)) for text in coded.dictionary.to_pylist()
        ]
        if len(self.texts) > MAX_TEXTS:
            raise DataError(
                f"{self.where}: the column {self.name!r} has more than {MAX_TEXTS:,} different"
                " texts; a filter can use names, such as languages or classes"
            )
        codes: NDArray[np.int32] = np.array(numbers, np.int32)[coded.indices.to_numpy()]
        return codes

    def _vectors(self, column: pa.ChunkedArray, widths: pa.Array) -> NDArray[np.float32]:
        inner = column.type.value_type
        if not pa.types.is_floating(inner) or (self._has_type and self.width is None):
            raise self._refuse(column.type)
        lengths = {*widths.to_pylist(), *([] if self.width is None else [self.width])}
        if len(lengths) > 1:
            raise DataError(
                f"{self.where}: the column {self.name!r} holds lists of different lengths, such as"
                f" {' and '.join(map(str, sorted(lengths)[:2]))}; a filter can use vectors of one"
                " length"
            )
        self.width = lengths.pop() if lengths else 0
        values = np.full((len(column), self.width), np.nan, np.float32)
        is_valid = np.asarray(column.is_valid())
        flat = [chunk.flatten() for chunk in column.drop_null().chunks]
        if flat:
            numbers = pa.concat_arrays(flat).to_numpy(zero_copy_only=False)
            values[is_valid] = numbers.reshape(-1, self.width)
        return values

    def _refuse(self, kind: pa.DataType) -> DataError:
        return DataError(
            f"{self.where}: the column {self.name!r} holds {kind}; a filter can use numbers, names"
            " and vectors, one kind in a column"
        )


def _is_untyped(kind: pa.DataType) -> bool:
    """Whether null rows of an Arrow type leave the column's type open."""
    return bool(pa.types.is_null(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))
