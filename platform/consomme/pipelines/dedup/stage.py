"""The stage of `dedup`: content hash, perceptual hash and thumbnail of each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
from PIL import Image

from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.vision.decode import num_pixels

THUMBNAIL = "thumbnail"
"""Name of the column of thumbnails, which runs of earlier versions lack."""

MIN_SIDE_PX = 128


class HashStage(UnitStage):
    """Compute the hashes and the thumbnail of each picture."""

    # Thumbnails have 64 × 64 pixels; decoding at twice that size or more gives the same ones.
    min_side_px = MIN_SIDE_PX

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Hash one unit."""
        from consomme.curate.dedup.phash import hash_picture

        images = [item.images[0] for item in samples]
        hashes = hash_picture(images)
        content = [content_hash(item.sample.images[0].data) for item in samples]
        columns = {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
            "content_hash": pa.array(content, pa.binary(16)),
            "phash": pa.array(hashes.phash_N, pa.uint64()),
            "phash_flipped": pa.array(hashes.flipped_N, pa.uint64()),
            "colour": pa.array(hashes.colour_N, pa.uint64()),
            "is_flat": pa.array(hashes.is_flat_N, pa.bool_()),
            "num_pixels": pa.array(
                [num_pixels(item.sample.images[0].data) for item in samples], pa.int64()
            ),
            "num_bytes": pa.array(
                [len(item.sample.images[0].data) for item in samples], pa.int32()
            ),
            THUMBNAIL: thumbnail_column(images),
        }
        return Outcome(table=pa.table(columns))


def thumbnail_column(images: Sequence[Image.Image]) -> pa.Array:
    """Make the column of thumbnails."""
    from consomme.curate.dedup.thumbnails import NUM_BYTES, make_thumbnails

    data = pa.py_buffer(make_thumbnails(images).tobytes())
    return pa.Array.from_buffers(pa.binary(NUM_BYTES), len(images), [None, data])


def content_hash(data: bytes) -> bytes:
    """Hash encoded bytes to 16 bytes: a billion pictures collide with a probability of 1e-21."""
    return hashlib.blake2b(data, digest_size=16).digest()
