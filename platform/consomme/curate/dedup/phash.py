"""A picture in 16 bytes: a DCT perceptual hash (pHash), and the colours of its quarters.

The hash: a picture is resized to 32 × 32 pixels; of the cosine transform of its grey levels the
8 × 8 lowest frequencies are kept, without the constant one; bit `8 * v + u` is set if the
coefficient of `v` vertical and `u` horizontal half waves is clearly positive. Bit 0 is never set.
The usual pHash compares with the median instead: in a symmetric picture half of the coefficients
are zero, and on which side of a median they fall is noise. Here a bit is set above a twentieth of
the mean magnitude.

The colours: grey levels are not enough, since hearts, shirts and flags may differ by colour only,
and their captions name it. So the hash comes with the mean colour of each quarter, without
brightness: eight bytes, Cb and Cr of the quarters from left to right and top to bottom.
`tests/benchmarks/dedup.py` measures both choices.

The transform is calculated with integers below 2**53, so every machine computes the same bits.

Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), section
3.2.1. It keeps the frequencies 1 to 8; 0 to 7 survive cropping better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Shapes: N pictures, Y rows and X columns of pixels, V and U vertical and horizontal frequencies.
SIDE_PX = 32
NUM_FREQUENCIES = 8

FLAT_LEVELS = 2.0
"""A picture whose grey levels, at 32 × 32, have a standard deviation below this (of 255) has no
meaningful hash: the rest is codec noise. Of pictures whose contrast is reduced to less than 1 level
and that are saved as JPEG of quality 60, 5 % stay within distance 4; 17 % at 1-1.5 levels, 46 % at
1.5-3, 76 % at 3-5 and 88 % at 10-20."""

_SCALE = 1 << 14
_MAGNITUDE_DIVISOR = 20
"""A bit is set above the mean magnitude divided by this."""

_MIRRORED = [2, 3, 0, 1, 6, 7, 4, 5]


@dataclass(frozen=True, kw_only=True)
class PictureHashes:
    """Hashes and colours of pictures."""

    phash_N: NDArray[np.uint64]  # noqa: N815
    """Perceptual hashes; similar pictures differ in few bits."""

    flipped_N: NDArray[np.uint64]  # noqa: N815
    """Hashes of the horizontally mirrored pictures."""

    colour_N: NDArray[np.uint64]  # noqa: N815
    """Cb and Cr of the quarters, one byte each."""

    is_flat_N: NDArray[np.bool_]  # noqa: N815
    """True for nearly uniform pictures, whose hash is meaningless."""


def hash_picture(images: Sequence[Image.Image]) -> PictureHashes:
    """Hash decoded pictures of any size and mode."""
    grey_NYX = np.zeros((len(images), SIDE_PX, SIDE_PX), dtype=np.uint8)
    colour_N8 = np.zeros((len(images), 8), dtype=np.uint8)
    for index, image in enumerate(images):
        size = (SIDE_PX, SIDE_PX)
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        grey_NYX[index] = np.asarray(small.convert("L"))
        quarters = small.resize((2, 2), Image.Resampling.BOX).convert("YCbCr")
        colour_N8[index] = np.asarray(quarters)[:, :, 1:].reshape(-1)
    phash_N, flipped_N = hash_grey(grey_NYX)
    return PictureHashes(
        phash_N=phash_N,
        flipped_N=flipped_N,
        colour_N=colour_N8.view("<u8").reshape(-1).astype(np.uint64),
        is_flat_N=_is_flat(grey_NYX),
    )


def hash_grey(grey_NYX: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hash pictures given as 32 × 32 grey levels.

    Returns:
        phash_N: Hashes of the pictures.
        flipped_N: Hashes of their mirror images.
    """
    cosine_VY = _cosines()
    # All numbers are integers that a float64 holds exactly, so the order of sums is irrelevant.
    coefficients_NVU = cosine_VY @ grey_NYX.astype(np.float64) @ cosine_VY.T
    coefficients_NVU[:, 0, 0] = 0.0
    mirror_U = np.where(np.arange(NUM_FREQUENCIES) % 2, -1.0, 1.0)
    return _bits(coefficients_NVU), _bits(coefficients_NVU * mirror_U)


def mirrored_colour(colour_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the colours of mirror images: left and right quarters are swapped."""
    bytes_N8 = colour_N.astype("<u8").view(np.uint8).reshape(-1, 8)
    return bytes_N8[:, _MIRRORED].copy().view("<u8").reshape(-1).astype(np.uint64)


def colour_gap(one_N: NDArray[np.uint64], other_N: NDArray[np.uint64]) -> NDArray[np.int16]:
    """Return the largest difference between two pictures' quarters, of 255."""
    ones, others = (
        colour.astype("<u8").view(np.uint8).reshape(-1, 8).astype(np.int16)
        for colour in (one_N, other_N)
    )
    gap_N: NDArray[np.int16] = np.abs(ones - others).max(axis=1, initial=0)
    return gap_N


def _is_flat(grey_NYX: NDArray[np.uint8]) -> NDArray[np.bool_]:
    pixels = SIDE_PX * SIDE_PX
    levels_NP = grey_NYX.reshape(-1, pixels).astype(np.int64)
    variance_N = pixels * (levels_NP**2).sum(axis=1) - levels_NP.sum(axis=1) ** 2
    is_flat_N: NDArray[np.bool_] = variance_N < FLAT_LEVELS**2 * pixels**2
    return is_flat_N


def _bits(coefficients_NVU: NDArray[np.float64]) -> NDArray[np.uint64]:
    flat = coefficients_NVU.reshape(-1, NUM_FREQUENCIES**2)
    magnitude = np.abs(flat).sum(axis=1, keepdims=True)
    is_set = flat * (_MAGNITUDE_DIVISOR * (flat.shape[1] - 1)) > magnitude
    packed = np.ascontiguousarray(np.packbits(is_set, axis=1, bitorder="little"))
    return packed.view("<u8").reshape(-1).astype(np.uint64)


def _cosines() -> NDArray[np.float64]:
    """Return the first rows of the orthonormal DCT-II matrix, scaled to integers."""
    wave_V = np.arange(NUM_FREQUENCIES)[:, None]
    position_Y = np.arange(SIDE_PX)[None, :]
    norm_V = np.where(wave_V == 0, 1.0, np.sqrt(2.0)) / np.sqrt(SIDE_PX)
    table_VY = np.cos(np.pi / SIDE_PX * (position_Y + 0.5) * wave_V) * norm_V
    whole_VY: NDArray[np.float64] = np.rint(table_VY * _SCALE)
    return whole_VY
