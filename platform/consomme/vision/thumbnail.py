"""Make small JPEGs of pictures for pages."""

from __future__ import annotations

import io

from consomme.vision.decode import DecodeProblem, decode

THUMBNAIL_PX = 320


def thumbnail(data: bytes) -> bytes:
    """Make a small JPEG of a picture, so that a page of many stays small; empty if there is none.

    Pictures that are small already come back as they are.
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
