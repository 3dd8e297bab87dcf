"""Thumbnails that show whether two pictures are copies, after hashes have said that they may be.

A hash forgets where pictures differ, so no two pictures are called copies by their hashes alone.
What is compared here is independent of the hash: 64 × 64 grey levels, and the colours of 16 × 16
parts. A thumbnail is 4,609 bytes; its last byte says how many pixels it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Shapes: N pictures, B bytes of a thumbnail, Y rows and X columns of pixels.
Thumbnails = NDArray[np.uint8]

SIDE_PX = 64
COLOUR_PX = 16
COARSE_PX = 8
COARSE_BYTES = COARSE_PX * COARSE_PX
_GREY = SIDE_PX * SIDE_PX
_COLOUR = COLOUR_PX * COLOUR_PX
NUM_BYTES = _GREY + 2 * _COLOUR + 1
"""Bytes of a thumbnail: grey levels, Cb, Cr, and the shorter side of its picture (at most 255)."""


def make_thumbnails(images: Sequence[Image.Image]) -> Thumbnails:
    """Make the thumbnails of decoded pictures of any size and mode, one a row."""
    made_NB = np.zeros((len(images), NUM_BYTES), dtype=np.uint8)
    for number, image in enumerate(images):
        colours = image.convert("RGB")
        small = colours.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        made_NB[number, :_GREY] = np.asarray(small.convert("L")).reshape(-1)
        parts = small.resize((COLOUR_PX, COLOUR_PX), Image.Resampling.BOX).convert("YCbCr")
        made_NB[number, _GREY:-1] = np.asarray(parts)[:, :, 1:].transpose(2, 0, 1).reshape(-1)
        made_NB[number, -1] = min(255, *image.size)
    return made_NB


def grey_of(thumbnail_NB: Thumbnails) -> NDArray[np.uint8]:
    """Return the grey levels, N × 64 × 64."""
    return thumbnail_NB[:, :_GREY].reshape(-1, SIDE_PX, SIDE_PX)


def colours_of(thumbnail_NB: Thumbnails) -> NDArray[np.uint8]:
    """Return Cb and Cr, N × 2 × 16 × 16."""
    return thumbnail_NB[:, _GREY:-1].reshape(-1, 2, COLOUR_PX, COLOUR_PX)


def sides_of(thumbnail_NB: Thumbnails) -> NDArray[np.int64]:
    """Return the shorter side of each picture in pixels; 255 stands for all larger ones."""
    return thumbnail_NB[:, -1].astype(np.int64)


def mirrored(thumbnail_NB: Thumbnails) -> Thumbnails:
    """Return the thumbnails of the horizontally mirrored pictures."""
    turned_NB = thumbnail_NB.copy()
    turned_NB[:, :_GREY] = grey_of(thumbnail_NB)[:, :, ::-1].reshape(-1, _GREY)
    turned_NB[:, _GREY:-1] = colours_of(thumbnail_NB)[:, :, :, ::-1].reshape(-1, 2 * _COLOUR)
    return turned_NB


def coarse_levels(thumbnail_NB: Thumbnails) -> NDArray[np.uint8]:
    """Return the mean grey levels of 8 × 8 parts, one picture a row."""
    part = SIDE_PX // COARSE_PX
    grey = grey_of(thumbnail_NB).reshape(-1, COARSE_PX, part, COARSE_PX, part)
    sums = grey.sum((2, 4), dtype=np.uint32).reshape(-1, COARSE_BYTES)
    levels: NDArray[np.uint8] = (sums // part**2).astype(np.uint8)
    return levels


def mirrored_levels(coarse_NB: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the coarse levels of the horizontally mirrored pictures."""
    turned = coarse_NB.reshape(-1, COARSE_PX, COARSE_PX)[:, :, ::-1]
    levels: NDArray[np.uint8] = turned.reshape(-1, COARSE_BYTES)
    return levels
