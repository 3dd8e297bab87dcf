"""The stage of `dedup`: content and perceptual hashes of each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.vision.decode import num_pixels


class HashStage(UnitStage):
    """Hash the bytes and the looks of each picture."""

    # A hash sees 32 × 32 pixels; from twice as many on, where they come from makes no difference.
    min_side_px = 64

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Hash one unit."""
        from consomme.curate.dedup.phash import hash_picture

        looks = hash_picture([item.image for item in samples])
        content = [content_hash(item.sample.image) for item in samples]
        columns = {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
            "content_hash": pa.array(content, pa.binary(16)),
            "phash": pa.array(looks.phash_N, pa.uint64()),
            "phash_flipped": pa.array(looks.flipped_N, pa.uint64()),
            "colour": pa.array(looks.colour_N, pa.uint64()),
            "is_flat": pa.array(looks.is_flat_N, pa.bool_()),
            "num_pixels": pa.array([num_pixels(item.sample.image) for item in samples], pa.int64()),
            "num_bytes": pa.array([len(item.sample.image) for item in samples], pa.int32()),
        }
        return Outcome(table=pa.table(columns))


def content_hash(data: bytes) -> bytes:
    """Hash encoded bytes to 16: among a billion pictures, one collision in 10**21 data sets."""
    return hashlib.blake2b(data, digest_size=16).digest()
