"""Convert decoded pictures of any mode to upright 8-bit RGB."""

from __future__ import annotations

import re

import numpy as np
from PIL import ExifTags, Image

from consomme.vision.problem import BadImageError

BACKGROUND = (255, 255, 255)
"""Colour behind transparent parts."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes a picture upright, by EXIF orientation; 1 needs none."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture to RGB.

    Raises:
        BadImageError: `image_undecodable`: some pixels are NaN or infinite.
        ValueError: Pillow cannot convert the picture's colour space to RGB.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, BACKGROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def _to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale grey of more than 8 bits; integers in 0-65535 and floats in 0-1 by their full range.

    Depth maps, radiographs and elevations have other ranges; they are scaled from their lowest to
    their highest value.
    """
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadImageError("image_undecodable", "some pixels are infinite or not a number")
    scaled: np.ndarray
    span = float(high) - float(low)
    if pixels.dtype.kind in "iu" and low >= 0 and high <= 65_535:
        scaled = pixels.astype(np.uint32) >> 8
    elif pixels.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        scaled = np.rint(pixels * 255)
    else:
        scaled = np.rint((pixels.astype(np.float64) - float(low)) * (255 / span if span else 0.0))
    return scaled.astype(np.uint8)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate and mirror a picture according to its EXIF orientation."""
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def orientation(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation of a loaded picture; 1 if it is unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Bad metadata does not make the pixels bad.
    except (ValueError, TypeError, KeyError, SyntaxError, OSError, ArithmeticError, re.error):
        return 1


def header_orientation(image: Image.Image, data: bytes) -> int:
    """Return by which orientation an opened picture, that is not loaded, is to be turned.

    Pillow loads a PNG that has no EXIF before its pixels, in case there is some after them. A TIFF
    is opened with the size that it is turned to when it is loaded.
    """
    if image.format == "TIFF":
        return 1
    if image.format != "PNG" or "exif" in image.info:
        return orientation(image)
    late = _late_png_exif(data)
    if late is None and "Orientation" not in str(image.info.get("XML:com.adobe.xmp", "")):
        return 1
    # An empty EXIF block lets Pillow read what else there is.
    image.info["exif"] = b"Exif\0\0" + (late or b"")
    return orientation(image)


def _late_png_exif(data: bytes) -> bytes | None:
    """Return the EXIF chunk of a PNG, wherever it stands; chunks are skipped, not unpacked."""
    position = 8
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"eXIf":
            return data[position + 8 : position + 8 + size]
        position += 12 + size
    return None
