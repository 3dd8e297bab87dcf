"""Thumbnails of the pictures to compare, in files that are mapped into memory.

Units hold their thumbnails beside their hashes. Pairs are anywhere, so the thumbnails of all
pictures that may have a copy are copied once to a scratch folder: 4.7 kB each, of which the system
keeps in memory what it has room for. The folder is removed when the decision is made.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from consomme.base.errors import ClusterError, DataError
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.hash_tables import Index
from consomme.curate.dedup.thumbnails import (
    COARSE_BYTES,
    NUM_BYTES,
    Thumbnails,
    coarse_levels,
    make_thumbnails,
)
from consomme.pipelines.dedup.copies import HASHES, SampleHashes
from consomme.pipelines.dedup.pictures import (
    CONTENT_HASH,
    FURTHER_THUMBNAILS,
    THUMBNAIL,
    PictureRows,
)
from consomme.pipelines.dedup.stage import MIN_SIDE_PX
from consomme.storage.sidecar import iter_columns
from consomme.storage.unit import Unit
from consomme.storage.units import read_unit
from consomme.vision.decode import DecodeProblem, decode

LOG = logging.getLogger(__name__)

# Shapes: M pictures to compare, B bytes.
_SPARE_BYTES = 1 << 30


class ThumbnailScratch:
    """Thumbnails of a run on local disk; a context manager that removes them."""

    def __init__(self, url: str, hashed: SampleHashes) -> None:
        self._url = url
        self._hashed = hashed
        self._scratch = tempfile.TemporaryDirectory(prefix="consomme-thumbnails-")

    def __enter__(self) -> ThumbnailScratch:
        """Return the scratch itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        self._scratch.cleanup()

    def open(self, picture_M: Index) -> ThumbnailTable:
        """Copy the thumbnails of pictures, given by index, and map them.

        Raises:
            ClusterError: There is not enough room.
            DataError: A thumbnail has to be made from its picture, which cannot be read any more.
        """
        needed = len(picture_M) * (NUM_BYTES + COARSE_BYTES)
        free = shutil.disk_usage(self._scratch.name).free
        if needed + _SPARE_BYTES > free:
            raise ClusterError(
                f"{self._scratch.name}: found {free / 1e9:.1f} GB free, expected"
                f" {(needed + _SPARE_BYTES) / 1e9:.1f} GB for the thumbnails of"
                f" {len(picture_M):,} pictures; set TMPDIR to a folder with more room"
            )
        table = ThumbnailTable(
            thumbnail_NB=self._file("thumbnails", len(picture_M), NUM_BYTES),
            coarse_NB=self._file("coarse", len(picture_M), COARSE_BYTES),
        )
        optional = [THUMBNAIL, FURTHER_THUMBNAILS]
        tables = iter_columns(self._url, [CONTENT_HASH], HASHES, with_ids=False, optional=optional)
        fill(table, picture_M, self._hashed, ((r.unit, found) for r, found in tables))
        return table

    def _file(self, name: str, rows: int, width: int) -> Thumbnails:
        if not rows:
            return np.zeros((0, width), np.uint8)
        path = Path(self._scratch.name) / name
        return np.memmap(path, dtype=np.uint8, mode="w+", shape=(rows, width))


def fill(
    table: ThumbnailTable,
    picture_M: Index,
    hashed: SampleHashes,
    tables: Iterable[tuple[Unit, pa.Table]],
) -> None:
    """Fill a table with the thumbnails of pictures.

    Args:
        table: Its rows are aligned with the pictures.
        picture_M: Indices of pictures in `hashed`.
        hashed: Whose order of units the tables have.
        tables: Each unit with its rows and thumbnails. Units that were hashed by an earlier version
            have no thumbnails; they are made from the pictures.
    """
    row_M = np.argsort(picture_M, kind="stable")
    sorted_M = picture_M[row_M]
    for k, (unit, found) in enumerate(tables):
        begin, end = np.searchsorted(sorted_M, hashed.begin_U[k : k + 2])
        if begin == end:
            continue
        places = hashed.place_N[sorted_M[begin:end]].astype(np.int64)
        rows = PictureRows.of(found)
        if THUMBNAIL in found.column_names:
            thumbnails = _bytes(rows.column(found, THUMBNAIL, places))
        else:
            sample_rows = found["row"].to_numpy()[rows.row_P[places]]
            thumbnails = _made(unit, sample_rows, rows.image_P[places])
        table.thumbnail_NB[row_M[begin:end]] = thumbnails
        table.coarse_NB[row_M[begin:end]] = coarse_levels(thumbnails)


def _bytes(values: pa.Array) -> Thumbnails:
    data = np.frombuffer(values.buffers()[1], np.uint8)
    offset = values.offset * NUM_BYTES
    return data[offset : offset + len(values) * NUM_BYTES].reshape(-1, NUM_BYTES)


def _made(unit: Unit, rows: Index, images: Index) -> Thumbnails:
    """Make thumbnails of pictures, given by row of the sample in the unit and index there."""
    LOG.info("%s has no thumbnails: an earlier version hashed it; reading pictures", unit.unit_id)
    samples = dict(read_unit(unit)[0])

    def pictures() -> Iterator[Thumbnails]:
        for row, index in zip(rows.tolist(), images.tolist(), strict=True):
            has_picture = row in samples and index < len(samples[row].images)
            image = (
                decode(samples[row].images[index].data, min_side_px=MIN_SIDE_PX)
                if has_picture
                else None
            )
            if image is None or isinstance(image, DecodeProblem):
                raise DataError(
                    f"{unit.shard}: row {unit.start + row} was hashed, but its picture cannot be"
                    " read any more; expected the data that was hashed; run dedup on the data again"
                )
            yield make_thumbnails([image])

    return np.concatenate(list(pictures()))
