"""Which images of a data set are copies of known ones, such as those of a benchmark.

What is a copy is decided as among the images of the data set: the same bytes; or near hashes, and
thumbnails that agree. Here every image of the data set is compared with all known ones that are
near, not only with the best, and the least different one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consomme.curate.dedup.comparison import differences, is_plausible
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import NearDuplicateLimits
from consomme.curate.dedup.hash_tables import CHUNK, Index, Words, block_masks
from consomme.curate.dedup.phash import colour_gap, hash_picture, mirrored_colour
from consomme.curate.dedup.thumbnails import (
    NUM_BYTES,
    Thumbnails,
    coarse_levels,
    make_thumbnails,
    mirrored,
    mirrored_levels,
)

# Shapes: N images of the data set, K known images, E known images and their mirror images, P pairs.
_PAIRS = 1 << 10


@dataclass(frozen=True, kw_only=True)
class KnownImages:
    """What is compared of known images."""

    content_K2: Words  # noqa: N815
    """Hash of each image's bytes, as two words; 0 for images that have none."""

    phash_K: Words  # noqa: N815
    flipped_K: Words  # noqa: N815
    colour_K: Words  # noqa: N815
    is_flat_K: NDArray[np.bool_]  # noqa: N815
    thumbnail_KB: Thumbnails  # noqa: N815

    @classmethod
    def of(cls, parts: Sequence[KnownImages]) -> KnownImages:
        """Join images."""
        empty = cls.hashed([], [])
        names = cls.__dataclass_fields__
        return cls(
            **{n: np.concatenate([getattr(one, n) for one in (empty, *parts)]) for n in names}
        )

    @classmethod
    def hashed(cls, images: Sequence[Image.Image], contents: Sequence[bytes]) -> KnownImages:
        """Hash decoded images.

        Args:
            images: The images.
            contents: Hash of the bytes of each, 16 bytes; empty for those without.
        """
        found = hash_picture(images)
        words = b"".join(content or bytes(16) for content in contents)
        return cls(
            content_K2=np.frombuffer(words, "<u8").reshape(-1, 2).astype(np.uint64),
            phash_K=found.phash_N,
            flipped_K=found.flipped_N,
            colour_K=found.colour_N,
            is_flat_K=found.is_flat_N,
            thumbnail_KB=make_thumbnails(images).reshape(-1, NUM_BYTES),
        )


@dataclass(frozen=True, kw_only=True)
class KnownCopies:
    """The images of a data set that are copies of known ones."""

    image_P: Index  # noqa: N815
    """Index in the data set, ascending; each once."""

    known_P: Index  # noqa: N815
    """Index of the known image that it is a copy of."""

    distance_P: NDArray[np.uint8]  # noqa: N815
    """Bits between their hashes."""

    difference_P: NDArray[np.float32]  # noqa: N815
    """Of their thumbnails, at most 1; 0 for equal bytes."""

    is_exact_P: NDArray[np.bool_]  # noqa: N815


def find_known(
    content_N2: Words,
    phash_N: Words,
    colour_N: Words,
    is_flat_N: NDArray[np.bool_],
    known: KnownImages,
    limits: NearDuplicateLimits | None,
    thumbnails: Callable[[Index], ThumbnailTable],
    *,
    flips: bool,
) -> KnownCopies:
    """Find the copies of known images.

    Args:
        content_N2: Hash of each image's bytes, as two words.
        phash_N: Perceptual hashes.
        colour_N: Colours of the quarters.
        is_flat_N: Images without a meaningful hash: only equal bytes are copies.
        known: The known images.
        limits: When images are compared; None: only equal bytes are copies.
        thumbnails: Opens the thumbnails of images of the data set, by index, ascending.
        flips: Whether mirror images are copies.
    """
    exact = _equal_bytes(content_N2, known.content_K2)
    zeros = np.zeros(len(exact[0]))
    found = [(*exact, zeros.astype(np.uint8), zeros.astype(np.float32), zeros == 0)]
    if limits is not None and len(known.phash_K):
        near = _near_pairs(phash_N, colour_N, is_flat_N, known, limits, flips=flips)
        open_P = np.flatnonzero(~np.isin(near[0], exact[0]))
        image, entry = near[0][open_P], near[1][open_P]
        if len(image):
            wanted, place = np.unique(image, return_inverse=True)
            table = thumbnails(wanted)
            difference = _difference(table, place, known.thumbnail_KB, entry, near[2][open_P])
            same = np.flatnonzero(difference <= 1)
            near_P = near[3][open_P[same]], difference[same], np.zeros(len(same), bool)
            found.append((image[same], entry[same], *near_P))
    image, known_index, distance, difference, is_exact = map(
        np.concatenate, zip(*found, strict=True)
    )
    # Of several copies the least different one, then the first of the known ones.
    order = np.lexsort((known_index, difference, image))
    first = order[np.unique(image[order], return_index=True)[1]]
    return KnownCopies(
        image_P=image[first].astype(np.int64),
        known_P=known_index[first].astype(np.int64),
        distance_P=distance[first],
        difference_P=difference[first],
        is_exact_P=is_exact[first],
    )


def _equal_bytes(content_N2: Words, content_K2: Words) -> tuple[Index, Index]:
    """Return pairs with the same hash of their bytes."""
    has_bytes = np.flatnonzero(content_K2.any(axis=1))
    numbers = {tuple(content_K2[k].tolist()): k for k in reversed(has_bytes.tolist())}
    candidates = np.flatnonzero(np.isin(content_N2[:, 0], content_K2[has_bytes, 0]))
    pairs = [(n, numbers.get(tuple(content_N2[n].tolist()))) for n in candidates.tolist()]
    same = np.array([(n, k) for n, k in pairs if k is not None], dtype=np.int64).reshape(-1, 2)
    return same[:, 0], same[:, 1]


def _near_pairs(
    phash_N: Words,
    colour_N: Words,
    is_flat_N: NDArray[np.bool_],
    known: KnownImages,
    limits: NearDuplicateLimits,
    *,
    flips: bool,
) -> tuple[Index, Index, NDArray[np.bool_], NDArray[np.uint8]]:
    """Return pairs with near hashes and colours: image, known image, mirrored or not, bits."""
    shaped = np.flatnonzero(~known.is_flat_K)
    known_E, hash_E, colour_E = shaped, known.phash_K[shaped], known.colour_K[shaped]
    is_mirrored_E = np.zeros(len(shaped), dtype=bool)
    if flips:
        known_E, is_mirrored_E = np.tile(known_E, 2), np.repeat([False, True], len(shaped))
        hash_E = np.concatenate([hash_E, known.flipped_K[shaped]])
        colour_E = np.concatenate([colour_E, mirrored_colour(colour_E)])
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    open_N = np.flatnonzero(~is_flat_N)
    num_entries = max(1, len(hash_E))
    for mask in block_masks(num_entries, limits.max_distance):
        order_E = np.argsort(hash_E & mask)
        sorted_E = (hash_E & mask)[order_E]
        for at in range(0, len(open_N), CHUNK):
            image = open_N[at : at + CHUNK]
            masked = phash_N[image] & mask
            begin = np.searchsorted(sorted_E, masked, "left")
            size = np.searchsorted(sorted_E, masked, "right") - begin
            # One copy after the other: known images with equal hashes may be many.
            for step in range(int(size.max(initial=0))):
                here = np.flatnonzero(size > step)
                entry = order_E[begin[here] + step]
                one = image[here]
                near = np.bitwise_count(phash_N[one] ^ hash_E[entry]) <= limits.max_distance
                one, entry = one[near], entry[near]
                if limits.max_colour < 255:
                    alike = colour_gap(colour_N[one], colour_E[entry]) <= limits.max_colour
                    one, entry = one[alike], entry[alike]
                found.append(one * num_entries + entry)
    pairs = np.unique(np.concatenate(found))
    image, entry = pairs // num_entries, pairs % num_entries
    distance = np.bitwise_count(phash_N[image] ^ hash_E[entry])
    return image, known_E[entry], is_mirrored_E[entry], distance.astype(np.uint8)


def _difference(
    table: ThumbnailTable,
    place_P: Index,
    known_KB: Thumbnails,
    known_P: Index,
    is_mirrored_P: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Compare pairs; those that cannot be copies differ by more than 1."""
    found_P = np.full(len(place_P), np.inf, dtype=np.float32)
    coarse_KB = coarse_levels(known_KB)
    for at in range(0, len(place_P), _PAIRS):
        pair = np.arange(at, min(at + _PAIRS, len(place_P)))
        coarse, turned = coarse_KB[known_P[pair]], is_mirrored_P[pair]
        coarse[turned] = mirrored_levels(coarse[turned])
        pair = pair[is_plausible(table.coarse_NB[place_P[pair]], coarse, False)]
        others, turned = known_KB[known_P[pair]], is_mirrored_P[pair]
        others[turned] = mirrored(others[turned])
        found_P[pair] = differences(table.thumbnail_NB[place_P[pair]], others)
    return found_P
