"""Boxes as models write them: `[xmin,ymin,xmax,ymax]` in integers from 0 to 999.

One decision is made here: 0 and 999 are the edges of the picture, whatever its size, so a box means
the same before and after a picture is resized, and never takes more than three digits a number.
Source: arXiv 2407.17453 (VILA²), the answers of its grounding specialist.
"""

from __future__ import annotations

import re
from typing import cast

Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax; x to the right, y downwards; half-open."""

LARGEST = 999
"""The right and the lower edge."""

_NUMBER = "(?:0|[1-9][0-9]{0,2})"

BOX_PATTERN = rf"\[{_NUMBER}(?:,{_NUMBER}){{3}}\]"
"""What a box looks like; as a structured output an answer has to match it as a whole."""

_WRITTEN = re.compile(r"\[\s*" + r"\s*,\s*".join(["([0-9]{1,3})"] * 4) + r"\s*\]")


def scale_box(box_px: tuple[float, float, float, float], width_px: float, height_px: float) -> Box:
    """Turn a box in pixels into one of 0 to 999; what lies outside of the picture is cut off."""
    sizes = (width_px, height_px, width_px, height_px)
    scaled = (
        round(LARGEST * min(max(value, 0), size) / size)
        for value, size in zip(box_px, sizes, strict=True)
    )
    return cast(Box, tuple(scaled))


def write_box(box: Box) -> str:
    """Write a box, without spaces."""
    return "[" + ",".join(map(str, box)) + "]"


def parse_boxes(text: str) -> list[Box]:
    """Read all boxes out of a text, in order; spaces in them do no harm.

    Brackets that hold something else are left alone, and so are boxes without any area: nothing is
    inside of them.
    """
    found = [cast(Box, tuple(map(int, match.groups()))) for match in _WRITTEN.finditer(text)]
    return [box for box in found if box[0] < box[2] and box[1] < box[3]]


def iou(first: Box, second: Box) -> float:
    """Return the area that two boxes share, divided by the area they cover together, in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    covered = _area(first) + _area(second) - shared
    return shared / covered if shared else 0.0


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
