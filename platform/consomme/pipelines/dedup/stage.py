"""The stage of `dedup`: content and perceptual hashes of each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.vision.decode import num_pixels


class HashStage(UnitStage):
    """Compute the content hash and the perceptual hash of each picture."""

    # The hash uses 32 × 32 pixels; decoding at twice that size or more gives the same hash.
    min_side_px = 64

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Hash one unit."""
        from consomme.curate.dedup.phash import hash_picture

        hashes = hash_picture([item.image for item in samples])
        content = [content_hash(item.sample.image) for item in samples]
        columns = {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
            "content_hash": pa.array(content, pa.binary(16)),
            "phash": pa.array(hashes.phash_N, pa.uint64()),
            "phash_flipped": pa.array(hashes.flipped_N, pa.uint64()),
            "colour": pa.array(hashes.colour_N, pa.uint64()),
            "is_flat": pa.array(hashes.is_flat_N, pa.bool_()),
            "num_pixels": pa.array([num_pixels(item.sample.image) for item in samples], pa.int64()),
            "num_bytes": pa.array([len(item.sample.image) for item in samples], pa.int32()),
        }
        return Outcome(table=pa.table(columns))


def content_hash(data: bytes) -> bytes:
    """Hash encoded bytes to 16 bytes: a billion pictures collide with a probability of 1e-21."""
    return hashlib.blake2b(data, digest_size=16).digest()
