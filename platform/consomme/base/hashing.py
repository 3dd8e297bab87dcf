"""Hash sample ids, and select fractions of samples by those hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def hash_ids(sample_ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return a stable 64-bit hash per sample id: the same on every machine and in every version.

    Ids must be unique in the whole run: prefix them with the source if sources may share ids.
    """
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in sample_ids)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def is_in_share(sample_id: str, fraction: float) -> bool:
    """Check whether a sample belongs to a fixed fraction of all samples, by a hash of its id.

    A smaller fraction is a subset of a larger one. `random_fraction` uses another hash, so a
    fraction of what it keeps is not biased.

    Args:
        sample_id: Id of the sample.
        fraction: Fraction in [0, 1]; 1 includes every sample.
    """
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8, person=b"share").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def mix_hash(hash_N: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Rehash 64-bit hashes with a seed (a bijection, so without new collisions).

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    mixed = hash_N + np.uint64((seed * 0x9E3779B97F4A7C15) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
