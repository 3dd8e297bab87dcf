"""Decode image bytes to an RGB picture, or return the reject reason.

The whole package decodes pictures through this module, so that a decompression bomb, a truncated
file or a web page named .jpg costs one sample and never the process.

| found | becomes |
|---|---|
| no bytes | `image_empty` |
| more than `max_image_bytes` encoded | `image_too_large` |
| more than `max_image_pixels` by any header, including those inside an icon, a JPEG 2000 box or a \
TIFF tile | `image_too_large`; no pixel is decoded |
| a JPEG of more than 200 scans; a TIFF of more than 300,000 strips | `image_too_large` |
| PNG text or colour profile that unpacks to more than 1 MB | left out, the picture decoded |
| file that ends early, including a JPEG that lacks only its end marker | `image_truncated` |
| JPEG whose codec reports damaged data; any other failure; formats not in `FORMATS` (SVG, EPS, \
HEIC, JPEG XL, PDF, web pages) | `image_undecodable`, which names the format |
| wrong file extension | decoded: the content decides |
| bytes after the end, filler between JPEG markers, unreadable EXIF | decoded |
| EXIF or XMP orientation | turned upright |
| grey, palette, one bit, CMYK, YCCK (Adobe's inverted one too) | RGB |
| alpha, palette or colour-key transparency | composited on white |
| 16 bits, 32 bits, floats | scaled to 8 bits: 0-65535, 0-1, or else from lowest to highest |
| float pixels that are NaN or infinite | `image_undecodable` |
| animation, several pages | the first frame |
| colour profile | not applied |

JPEGs are decoded by simplejpeg (`consomme.vision.jpeg`), other formats by Pillow. With
`min_side_px` a picture is returned at 1/2, 1/4 or 1/8 of its size: JPEGs are reduced by the codec,
which saves most of the time, others by averaging afterwards, which saves memory. The returned size
depends only on the picture's own size.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from consomme.base.sample import printable
from consomme.vision.colour import header_orientation, orientation, to_rgb, upright
from consomme.vision.headers import check_headers, check_pixels, format_name, is_video
from consomme.vision.jpeg import decode_jpeg
from consomme.vision.png import is_png, without_side_chunks
from consomme.vision.problem import BadImageError, DecodeProblem

__all__ = ["DecodeProblem", "decode", "num_pixels", "shrink_factor", "shrunk", "upright_size"]

_T = TypeVar("_T")

MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 64 * 1024 * 1024
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "ICO", "PPM",
)  # fmt: skip
"""Formats that are decoded. Pillow has more: EPS would start a program on bytes from the web."""


def decode(
    data: bytes,
    *,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    max_image_bytes: int = MAX_IMAGE_BYTES,
    min_side_px: int | None = None,
) -> Image.Image | DecodeProblem:
    """Decode to upright RGB: transparent parts become white, an animation becomes its first frame.

    Args:
        data: The encoded image.
        max_image_pixels: Limit of width times height, checked before any pixel is decoded. Pillow
            itself refuses more than 178 million.
        max_image_bytes: Limit of the encoded size.
        min_side_px: Pixels that the caller needs on the shorter side. The picture is returned at
            the smallest of 1/1, 1/2, 1/4 and 1/8 that still has as many. None: full size.

    Returns:
        The picture, or the reject reason with a detail.

    Raises:
        MemoryError: There was not enough memory for a picture within the limits.
    """
    if not data:
        return DecodeProblem(reason="image_empty", detail="0 bytes")
    if len(data) > max_image_bytes:
        return DecodeProblem(
            reason="image_too_large", detail=f"{len(data)} bytes, at most {max_image_bytes}"
        )
    return _or_problem(data, lambda given: _decode(given, max_image_pixels, min_side_px))


def upright_size(data: bytes) -> tuple[int, int] | DecodeProblem:
    """Return width and height of a picture as it is shown, in pixels, from its header alone.

    No pixel is decoded, so a picture that has a size here may still be damaged further on.

    Returns:
        The size, turned as EXIF or XMP says; or why there is none.
    """
    if not data:
        return DecodeProblem(reason="image_empty", detail="0 bytes")
    return _or_problem(data, _upright_size)


def _upright_size(data: bytes) -> tuple[int, int]:
    check_headers(data, MAX_IMAGE_PIXELS)
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        check_pixels(*image.size, MAX_IMAGE_PIXELS)
        width, height = image.size
        return (height, width) if header_orientation(image, data) >= 5 else (width, height)


def _or_problem(data: bytes, run: Callable[[bytes], _T]) -> _T | DecodeProblem:
    """Return what is read of a picture, or why it cannot be read."""
    try:
        return run(data)
    except BadImageError as error:
        return error.problem
    except Image.DecompressionBombError as error:
        return DecodeProblem(reason="image_too_large", detail=printable(str(error)))
    except MemoryError:
        raise
    # Decoders raise many exception types on bad bytes; each means one bad picture.
    except Exception as error:  # noqa: BLE001
        if _is_side_chunk(data, error):
            return _or_problem(without_side_chunks(data), run)
        return _problem(data, error)


def _is_side_chunk(data: bytes, error: Exception) -> bool:
    """Whether a PNG failed by its text or colour profile, which Pillow unpacks up to a limit."""
    return "MAX_TEXT_" in str(error) and is_png(data)


def num_pixels(data: bytes) -> int:
    """Return width times height of a picture that `decode` accepted, from its header."""
    if is_png(data):
        return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        return image.width * image.height


def _decode(data: bytes, max_image_pixels: int, min_side_px: int | None) -> Image.Image:
    check_headers(data, max_image_pixels)
    image = Image.open(io.BytesIO(data), formats=_formats())
    check_pixels(*image.size, max_image_pixels)
    size = image.size
    factor = shrink_factor(size, min_side_px)
    picture = None
    if image.format in ("JPEG", "MPO"):
        picture = decode_jpeg(data, size, factor)
        if picture is None and factor > 1:
            image.draft(None, (max(1, size[0] // factor), max(1, size[1] // factor)))
    if picture is None:
        image.load()
        picture = image
    rgb = to_rgb(picture)
    possible = [part for part in (2, 4, 8) if part <= factor and shrunk(size, part) == rgb.size]
    codec_factor = max(possible, default=1)
    if codec_factor < factor:
        rgb = rgb.reduce(factor // codec_factor)
    return upright(rgb, orientation(image))


def shrink_factor(size: tuple[int, int], min_side_px: int | None) -> int:
    """Return the largest factor (1, 2, 4 or 8) by which a picture may be reduced."""
    if min_side_px is None:
        return 1
    needed = max(1, min_side_px)
    return max(
        factor for factor in (1, 2, 4, 8) if factor == 1 or min(shrunk(size, factor)) >= needed
    )


def shrunk(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return width and height at `1 / factor`, rounded up as codecs do."""
    return -(-size[0] // factor), -(-size[1] // factor)


@cache
def _formats() -> tuple[str, ...]:
    """Return the `FORMATS` that this build of Pillow has; the first call initializes Pillow."""
    # Pillow warns about sizes and metadata that are checked here; a filter per call would not be
    # thread-safe.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _problem(data: bytes, error: Exception) -> DecodeProblem:
    detail = f"{type(error).__name__}: {error}"
    if is_video(data):
        detail = "a video file, expected an image; write its frames as images, in their order"
        return DecodeProblem(reason="video_unsupported", detail=detail)
    if isinstance(error, UnidentifiedImageError):
        name = format_name(data)
        detail = f"not a supported image format, begins {data[:12]!r}"
        if name:
            detail = f"{name}, which is not decoded; convert it, for example to JPEG"
            if "LFS" in name:
                detail = f"{name}, not the image itself; run: git lfs pull"
    says_truncated = any(word in str(error).lower() for word in ("truncat", "incomplete"))
    missing = _missing_bytes(data)
    scan = data.find(b"\xff\xda") if data.startswith(b"\xff\xd8") else -1
    is_unterminated = scan >= 0 and data.find(b"\xff\xd9", scan) < 0
    if says_truncated or missing or is_unterminated or isinstance(error, EOFError):
        detail += f"; {missing} bytes are missing" if missing else ""
        return DecodeProblem(reason="image_truncated", detail=printable(detail))
    return DecodeProblem(reason="image_undecodable", detail=printable(detail))


def _missing_bytes(data: bytes) -> int:
    """Return how many bytes are missing by the container's stated length; 0 if none or not stated.

    WebP, AVIF and JPEG 2000 state their length, but their decoders do not report truncation.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return max(0, 8 + int.from_bytes(data[4:8], "little") - len(data))
    if data[4:8] not in (b"ftyp", b"jP  "):
        return 0
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0 means "to the end of the file"
            return 0
        position += size
    return max(0, position - len(data))
