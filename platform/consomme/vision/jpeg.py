"""Decode JPEGs by simplejpeg: reduced size inside the codec, and stricter than Pillow.

Both use libjpeg-turbo and give the same pixels, so results do not depend on which of them decoded a
picture. The difference is in bad files: Pillow accepts a truncated file that a proxy closed with an
end marker (half a picture, the rest grey), and one without its last bytes; here the warnings of the
codec decide.
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
"""By colour space of the file: output format of the codec, and Pillow's mode for it."""

_TRUNCATED = ("premature end",)
_DAMAGED = ("bad huffman code", "bad arithmetic code", "found marker")
"""Warnings of libjpeg that mean wrong pixels. Others (filler bytes before a marker, an unknown JFIF
revision, a bad ICC marker) do not affect pixels."""


def decode_jpeg(data: bytes, size: tuple[int, int], factor: int) -> Image.Image | None:
    """Decode a JPEG, at `1 / factor` of its size.

    Args:
        data: The encoded file.
        size: Width and height according to Pillow; the codec must agree.
        factor: 1, 2, 4 or 8.

    Returns:
        The picture in Pillow's mode L, RGB or CMYK, or None if simplejpeg does not support the file
        (rare chroma subsampling, filler bytes): Pillow decodes it then.

    Raises:
        BadImageError: `image_truncated` or `image_undecodable`: the codec reports missing or
            damaged pixels.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    if (width, height) != size or space not in _MODES:
        return None
    codec_format, mode = _MODES[space]
    try:
        pixels = simplejpeg.decode_jpeg(
            data, codec_format, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except ValueError as error:
        message = str(error).lower()
        if any(words in message for words in _TRUNCATED):
            raise BadImageError("image_truncated", str(error)) from error
        if any(words in message for words in _DAMAGED):
            raise BadImageError("image_undecodable", str(error)) from error
        return None
    if mode == "L":
        return Image.fromarray(pixels[:, :, 0])
    # CMYK JPEGs are stored inverted, as Adobe does.
    return Image.fromarray(np.invert(pixels), "CMYK") if mode == "CMYK" else Image.fromarray(pixels)
