"""The stage of `dedup`: content hash, perceptual hash and thumbnail of each picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from PIL import Image

from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.pipelines.dedup.pictures import CONTENT_HASH, THUMBNAIL, by_sample
from consomme.vision.decode import num_pixels

if TYPE_CHECKING:
    from consomme.curate.dedup.quotes import QuoteIndex

MIN_SIDE_PX = 128

QUOTES = "quotes"
"""Column of the texts of benchmarks that a sample quotes, if the recipe names benchmarks."""

_QUOTES = pa.list_(pa.struct([("text", pa.int32()), ("fraction", pa.float32())]))


class HashStage(UnitStage):
    """Compute the hashes and the thumbnail of each picture; one row per sample."""

    # Thumbnails have 64 × 64 pixels; decoding at twice that size or more gives the same ones.
    min_side_px = MIN_SIDE_PX

    def __init__(self, index: QuoteIndex | None = None) -> None:
        """Take the texts that samples may quote, if any."""
        self.index = index

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Hash one unit."""
        from consomme.curate.dedup.phash import hash_picture

        images = [image for item in samples for image in item.images]
        encoded = [image.data for item in samples for image in item.sample.images]
        hashes = hash_picture(images)
        pictures = {
            CONTENT_HASH: pa.array([content_hash(data) for data in encoded], pa.binary(16)),
            "phash": pa.array(hashes.phash_N, pa.uint64()),
            "phash_flipped": pa.array(hashes.flipped_N, pa.uint64()),
            "colour": pa.array(hashes.colour_N, pa.uint64()),
            "is_flat": pa.array(hashes.is_flat_N, pa.bool_()),
            "num_pixels": pa.array([num_pixels(data) for data in encoded], pa.int64()),
            "num_bytes": pa.array([len(data) for data in encoded], pa.int32()),
            THUMBNAIL: thumbnail_column(images),
        }
        columns = {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
            **by_sample(pictures, [len(item.images) for item in samples]),
        }
        if self.index is not None:
            quotes = [
                [
                    {"text": number, "fraction": fraction}
                    for number, fraction in self.index.quoted(t.text for t in item.sample.turns)
                ]
                for item in samples
            ]
            columns[QUOTES] = pa.array(quotes, _QUOTES)
        return Outcome(table=pa.table(columns))


def thumbnail_column(images: Sequence[Image.Image]) -> pa.Array:
    """Make the column of thumbnails."""
    from consomme.curate.dedup.thumbnails import NUM_BYTES, make_thumbnails

    data = pa.py_buffer(make_thumbnails(images).tobytes())
    return pa.Array.from_buffers(pa.binary(NUM_BYTES), len(images), [None, data])


def content_hash(data: bytes) -> bytes:
    """Hash encoded bytes to 16 bytes: a billion pictures collide with a probability of 1e-21."""
    return hashlib.blake2b(data, digest_size=16).digest()
