"""Turn encoded image bytes into an RGB picture, or say in one word why not.

One decision is made here: every picture consomme looks at passes this door, so a bomb, a truncated file or a
web page named .jpg costs one sample and never the process.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 64 * 1024 * 1024
GROUND = (255, 255, 255)


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
    """Decode to upright RGB; transparent parts become white, of an animation the first frame is taken.

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
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_image_pixels:
                return DecodeProblem(
                    reason="image_too_large",
                    detail=f"{image.width}x{image.height} pixels, at most {max_image_pixels}",
                )
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        return DecodeProblem(
            reason="image_undecodable", detail=f"no known image format, begins {data[:12]!r}"
        )
    except Image.DecompressionBombError as error:
        return DecodeProblem(reason="image_too_large", detail=str(error))
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, IndexError, TypeError) as error:
        text = str(error)
        cut = "truncat" in text or "incomplete" in text.lower() or isinstance(error, EOFError)
        return DecodeProblem(
            reason="image_truncated" if cut else "image_undecodable",
            detail=f"{type(error).__name__}: {text}"[:200],
        )
    return _to_rgb(upright)


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
