"""JPEG by simplejpeg: at reduced size inside the codec, and stricter than Pillow.

Both decode with libjpeg-turbo and give the same pixels, so it does not matter to a result which of
them took a picture. The gain is in the bad ones: Pillow passes a file that broke off and was closed
by a proxy (half a picture, the rest grey), and one that has lost its last bytes; here the codec's
own warnings decide.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

from consomme.vision.problem import BadImageError

_MODES = {
    "YCbCr": ("RGB", "RGB"),
    "RGB": ("RGB", "RGB"),
    "Gray": ("GRAY", "L"),
    "CMYK": ("CMYK", "CMYK"),
    "YCCK": ("CMYK", "CMYK"),
}
"""For each colour space of a file: what the codec is asked for, and Pillow's name of that."""

_CUT = ("premature end",)
_BROKEN = ("bad huffman code", "bad arithmetic code", "found marker")
"""Warnings of libjpeg after which the pixels are not what was stored. The others (filler bytes
before a marker, an unknown JFIF revision, a bad ICC marker) leave them as they are."""


def decode_jpeg(data: bytes, size: tuple[int, int], factor: int) -> Image.Image | None:
    """Decode a JPEG, at `1 / factor` of its size.

    Args:
        data: The file.
        size: Width and height that Pillow read; the codec must agree.
        factor: 1, 2, 4 or 8.

    Returns:
        The picture in Pillow's mode L, RGB or CMYK, or None if simplejpeg does not take such a file
        (a rare chroma subsampling, filler bytes): Pillow has the last word then.

    Raises:
        BadImageError: `image_truncated` or `image_undecodable`: the codec says that pixels are
            damaged or missing.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    if (width, height) != size or space not in _MODES:
        return None
    wanted, mode = _MODES[space]
    try:
        pixels = simplejpeg.decode_jpeg(
            data, wanted, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except ValueError as error:
        said = str(error).lower()
        if any(words in said for words in _CUT):
            raise BadImageError("image_truncated", str(error)) from error
        if any(words in said for words in _BROKEN):
            raise BadImageError("image_undecodable", str(error)) from error
        return None
    if mode == "L":
        return Image.fromarray(pixels[:, :, 0])
    # Adobe stores CMYK as what is left of white; so does everybody else who writes it.
    return Image.fromarray(np.invert(pixels), "CMYK") if mode == "CMYK" else Image.fromarray(pixels)
