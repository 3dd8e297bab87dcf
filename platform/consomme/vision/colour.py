"""From whatever a file holds to upright RGB in eight bits."""

from __future__ import annotations

import re

import numpy as np
from PIL import ExifTags, Image

from consomme.vision.problem import BadImageError

GROUND = (255, 255, 255)
"""What shows through transparent parts."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is put upright, by its EXIF orientation; 1 is upright already."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a decoded picture into RGB.

    Raises:
        BadImageError: `image_undecodable`: some pixels are not numbers.
        ValueError: Pillow knows no way from the picture's colour space to RGB.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, GROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def _to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale deep grey: integers from 0 to 65535 and floats from 0 to 1 by what they mean.

    Depth maps, radiographs and elevations hold other values; they are stretched from their lowest
    to their highest.
    """
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadImageError("image_undecodable", "some pixels are infinite or not a number")
    eight: np.ndarray
    span = float(high) - float(low)
    if pixels.dtype.kind in "iu" and low >= 0 and high <= 65_535:
        eight = pixels.astype(np.uint32) >> 8
    elif pixels.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        eight = np.rint(pixels * 255)
    else:
        eight = np.rint((pixels.astype(np.float64) - float(low)) * (255 / span if span else 0.0))
    return eight.astype(np.uint8)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn and mirror a picture so that it stands as it was seen."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Read the EXIF (or XMP) orientation of a picture that was loaded; 1 if it is unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # EXIF is metadata: whatever is wrong with it, the pixels are as good as without it.
    except (ValueError, TypeError, KeyError, SyntaxError, OSError, ArithmeticError, re.error):
        return 1
