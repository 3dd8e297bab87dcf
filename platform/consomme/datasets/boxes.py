"""Bounding boxes as text: `[xmin,ymin,xmax,ymax]` in integers from 0 to 999.

0 and 999 are the edges of the picture whatever its size, so a box stays valid when the picture is
resized, and no number has more than three digits.
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
"""Regular expression of one box, for structured output."""

_BOX_TEXT = re.compile(r"\[\s*" + r"\s*,\s*".join(["([0-9]{1,3})"] * 4) + r"\s*\]")

_MEANT = re.compile(r"\[\s*" + r"\s*,\s*".join([r"-?[0-9]+(?:\.[0-9]+)?"] * 4) + r"\s*\]")


def scale_box(box_px: tuple[float, float, float, float], width_px: float, height_px: float) -> Box:
    """Convert a box from pixels to 0-999, clipped to the picture."""
    sizes = (width_px, height_px, width_px, height_px)
    scaled = (
        round(LARGEST * min(max(value, 0), size) / size)
        for value, size in zip(box_px, sizes, strict=True)
    )
    return cast(Box, tuple(scaled))


def write_box(box: Box) -> str:
    """Format a box, without spaces."""
    return "[" + ",".join(map(str, box)) + "]"


def parse_boxes(text: str) -> list[Box]:
    """Return all boxes in a text, in order; spaces inside them are allowed.

    Other bracketed text and boxes without area are ignored.
    """
    boxes = [cast(Box, tuple(map(int, match.groups()))) for match in _BOX_TEXT.finditer(text)]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def has_only_boxes(text: str) -> bool:
    """Whether a text names a box, and nothing in brackets that is meant as one but is none.

    Meant as one is what has four numbers in it, of any kind.
    """
    meant = _MEANT.findall(text)
    return bool(meant) and len(parse_boxes(text)) == len(meant)


def iou(first: Box, second: Box) -> float:
    """Return intersection over union of two boxes, in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    covered = _area(first) + _area(second) - shared
    return shared / covered if shared else 0.0


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
