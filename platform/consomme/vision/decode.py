"""Turn encoded image bytes into an RGB picture, or say in one word why not.

One decision is made here: every picture consomme looks at passes this door, so a bomb, a truncated
file or a web page named .jpg costs one sample and never the process.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 64 * 1024 * 1024
GROUND = (255, 255, 255)
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "ICO", "PPM",
)  # fmt: skip
"""What is decoded. Pillow knows more: EPS, for one, would start a program on bytes from the web."""


@dataclass(frozen=True, kw_only=True)
class DecodeProblem:
    """Why a picture could not be had."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


def decode(
    data: bytes,
    *,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    max_image_bytes: int = MAX_IMAGE_BYTES,
) -> Image.Image | DecodeProblem:
    """Decode to upright RGB: transparent parts become white, an animation its first frame.

    Args:
        data: The encoded image.
        max_image_pixels: Width times height above this is refused before any pixel is decoded.
        max_image_bytes: Encoded size above this is refused.
    """
    if not data:
        return DecodeProblem(reason="image_empty", detail="0 bytes")
    if len(data) > max_image_bytes:
        return DecodeProblem(
            reason="image_too_large", detail=f"{len(data)} bytes, at most {max_image_bytes}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_formats())
            if image.width * image.height > max_image_pixels:
                return DecodeProblem(
                    reason="image_too_large",
                    detail=f"{image.width}x{image.height} pixels, at most {max_image_pixels}",
                )
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        return DecodeProblem(reason="image_too_large", detail=str(error))
    # Decoders raise whatever the bytes made them stumble over; each is one bad picture.
    except Exception as error:  # noqa: BLE001
        return _problem(data, error)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _problem(data: bytes, error: Exception) -> DecodeProblem:
    detail = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, UnidentifiedImageError):
        detail = f"no known image format, begins {data[:12]!r}"
    told = any(word in str(error).lower() for word in ("truncat", "incomplete"))
    missing = _missing_bytes(data)
    if told or missing or isinstance(error, EOFError):
        detail += f"; {missing} bytes are missing" if missing else ""
        return DecodeProblem(reason="image_truncated", detail=detail)
    return DecodeProblem(reason="image_undecodable", detail=detail)


def _missing_bytes(data: bytes) -> int:
    """How many bytes the container says are missing at the end; 0 if none, or if it says nothing.

    WebP, AVIF and JPEG 2000 state their length, and their decoders do not say what went wrong.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return max(0, 8 + int.from_bytes(data[4:8], "little") - len(data))
    if data[4:8] not in (b"ftyp", b"jP  "):
        return 0
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0 means "to the end of the file"
            return 0
        at += size
    return max(0, at - len(data))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = image.convert("I")
        return wide.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, GROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")
