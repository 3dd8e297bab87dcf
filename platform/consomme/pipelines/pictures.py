"""Fetch single samples for a page: reports and previews show a few dozen of millions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from consomme.base.sample import Sample
from consomme.storage.units import Unit, read_unit
from consomme.vision.decode import DecodeProblem, decode

THUMBNAIL_PX = 320


def fetch(units: Mapping[str, Unit], wanted: Sequence[tuple[str, int]]) -> list[Sample]:
    """Read single samples: each unit once, and one unit in memory at a time.

    Args:
        units: Units by id.
        wanted: Unit id and row of each sample.

    Raises:
        DataError: A shard is gone or has changed.
    """
    found: dict[tuple[str, int], Sample] = {}
    for unit_id in dict.fromkeys(unit_id for unit_id, _ in wanted):
        samples = dict(read_unit(units[unit_id])[0])
        found |= {place: samples[place[1]] for place in wanted if place[0] == unit_id}
    return [found[place] for place in wanted]


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
