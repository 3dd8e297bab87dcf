"""Thumbnails of pictures for report pages."""

from __future__ import annotations

import io

from consomme.vision.decode import DecodeProblem, decode

THUMBNAIL_PX = 320


def thumbnail(data: bytes) -> bytes:
    """Return a small JPEG of a picture; empty if it cannot be decoded.

    Pictures of at most 32 kB are returned unchanged.
    """
    picture = decode(data, min_side_px=THUMBNAIL_PX)
    if isinstance(picture, DecodeProblem):
        return b""
    if len(data) <= 32_000 and data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")):
        return data
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
