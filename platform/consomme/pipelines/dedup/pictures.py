"""Pictures in the files of hashes, which have one row per sample.

The columns of a row are those of the sample's first picture. If a unit has a sample with none or
with several, its file has two more columns: hashes and thumbnails of further pictures, as lists. A
sample without pictures has a row of nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consomme.curate.dedup.hash_tables import Index

# Shapes: P pictures of a unit, in the order of rows, then of places in the sample.
CONTENT_HASH = "content_hash"
THUMBNAIL = "thumbnail"
"""Name of the column of thumbnails, which runs of earlier versions lack."""

FURTHER = "further_hashes"
FURTHER_THUMBNAILS = "further_thumbnails"


@dataclass(frozen=True, kw_only=True)
class PictureRows:
    """Where the pictures of a unit are in its table."""

    row_P: Index  # noqa: N815
    """Row of the table that has the picture's sample; not the sample's row in the unit."""

    image_P: Index  # noqa: N815
    """Index of the picture in its sample."""

    entry_P: Index  # noqa: N815
    """Its place in a column, after which the further pictures of all rows are counted on."""

    bare: Index
    """Rows of the table whose sample has no picture."""

    @classmethod
    def of(cls, table: pa.Table) -> PictureRows:
        """Find the pictures of a table with `CONTENT_HASH` and, if there is one, `FURTHER`."""
        has_picture = np.asarray(table[CONTENT_HASH].is_valid())
        first = np.flatnonzero(has_picture)
        further = [name for name in (FURTHER, FURTHER_THUMBNAILS) if name in table.column_names]
        if not further:
            return cls(
                row_P=first,
                image_P=np.zeros(len(first), np.int64),
                entry_P=first,
                bare=np.flatnonzero(~has_picture),
            )
        lengths = pc.fill_null(pc.list_value_length(table[further[0]]), 0).to_numpy()
        begin = np.cumsum(lengths) - lengths
        numbers = np.arange(lengths.sum())
        row = np.concatenate([first, np.repeat(np.arange(len(lengths)), lengths)])
        image = np.concatenate(
            [np.zeros(len(first), np.int64), numbers - np.repeat(begin, lengths) + 1]
        )
        entry = np.concatenate([first, table.num_rows + numbers])
        order = np.lexsort((image, row))
        return cls(
            row_P=row[order],
            image_P=image[order],
            entry_P=entry[order],
            bare=np.flatnonzero(~has_picture),
        )

    def column(self, table: pa.Table, name: str, pictures: Index | slice = slice(None)) -> pa.Array:
        """Return a column of hashes, or of thumbnails, by picture."""
        values = table[name].combine_chunks()
        if name == THUMBNAIL and FURTHER_THUMBNAILS in table.column_names:
            further = table[FURTHER_THUMBNAILS].combine_chunks().flatten()
            values = pa.concat_arrays([values, further])
        elif FURTHER in table.column_names:
            further = table[FURTHER].combine_chunks().flatten().field(name)
            values = pa.concat_arrays([values, further])
        return values.take(pa.array(self.entry_P[pictures]))


def by_sample(columns: dict[str, pa.Array], num_pictures: Sequence[int]) -> dict[str, pa.Array]:
    """Return columns with one row per sample.

    Args:
        columns: One row per picture; the last one is `THUMBNAIL`.
        num_pictures: Of each sample, in the order of the pictures.
    """
    if all(number == 1 for number in num_pictures):
        return columns
    sizes = np.array(num_pictures, np.int64)
    begin = np.cumsum(sizes) - sizes
    first = pa.array(begin, mask=sizes == 0)
    result = {name: values.take(first) for name, values in columns.items()}
    is_further = np.ones(sizes.sum(), bool)
    is_further[begin[sizes > 0]] = False
    further = pa.array(np.flatnonzero(is_further))
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.maximum(sizes - 1, 0))]), pa.int32())
    hashes = {name: values for name, values in columns.items() if name != THUMBNAIL}
    struct = pa.StructArray.from_arrays(list(hashes.values()), list(hashes))
    result[FURTHER] = pa.ListArray.from_arrays(offsets, struct.take(further))
    thumbnails = columns[THUMBNAIL].take(further)
    result[FURTHER_THUMBNAILS] = pa.ListArray.from_arrays(offsets, thumbnails)
    return result
