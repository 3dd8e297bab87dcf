"""Boxes as numbers in texts and in data, whatever their scale.

What a model writes, and what a column of a data set has, become fractions or pixels of one picture.
`consomme.datasets.boxes` has the format of our own specialists.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from consomme.vision.masking import PixelBox, Region

FractionBox = tuple[float, float, float, float]
"""Left, top, right and bottom edge as fractions of width and height."""

Scale = float | Literal["pixels"]
"""What the right and the lower edge are: a number such as 1000, or the picture's own size."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_FOUR = re.compile(rf"(?<![\w.-]){_NUMBER}(?:[\s,;()\[\]]+{_NUMBER}){{3}}(?![\w])")
_LOCATIONS = re.compile(r"(?:<loc(\d{4})>\s*){4}")
_NUM_LOCATIONS = 1024
_SLACK = 0.05


def box_in(text: str, scale: float | tuple[float, float]) -> FractionBox | None:
    """Return the first box that a text names, or None.

    Four numbers in a row are left, top, right and bottom, in any brackets: `[1, 2, 3, 4]`,
    `(1,2),(3,4)`, `{"bbox_2d": [1, 2, 3, 4]}`. Four `<loc0123>` are top, left, bottom and right, of
    1024, as PaliGemma writes them. Corners in the wrong order are no box.

    Args:
        text: An answer.
        scale: What the right and the lower edge are, such as 1000; or width and height.
    """
    match = _LOCATIONS.search(text) or _FOUR.search(text)
    return _read(match, scale) if match else None


def boxes_in(text: str, scale: float | tuple[float, float]) -> list[FractionBox]:
    """Return all boxes that a text names, in order; see `box_in`."""
    matches = list(_LOCATIONS.finditer(text)) or list(_FOUR.finditer(text))
    return [box for match in matches if (box := _read(match, scale)) is not None]


def _read(match: re.Match[str], scale: float | tuple[float, float]) -> FractionBox | None:
    if match[0].startswith("<loc"):
        places = [int(one) / _NUM_LOCATIONS for one in re.findall(r"\d{4}", match[0])]
        top, left, bottom, right = places
    else:
        width, height = scale if isinstance(scale, tuple) else (scale, scale)
        numbers = [float(one) for one in re.findall(_NUMBER, match[0])]
        left, right = numbers[0] / width, numbers[2] / width
        top, bottom = numbers[1] / height, numbers[3] / height
    return (left, top, right, bottom) if left < right and top < bottom else None


def overlap(one: FractionBox, other: FractionBox) -> float:
    """Return intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (math.fsum(areas) - width * height)


def is_outside(box: FractionBox) -> bool:
    """Whether a box reaches so far beyond the image that its scale is another one."""
    return min(box) < -_SLACK or max(box) > 1 + _SLACK


def in_pixels(box: FractionBox, size: tuple[int, int]) -> PixelBox:
    """Return a box in pixels of a picture of this width and height."""
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


Regions = tuple[tuple[Region, ...], ...]
"""Regions of each picture of a sample."""


def read_regions(
    value: Any,
    sizes: Sequence[tuple[int, int]],
    scale: Scale = "pixels",
    box_is: Literal["corners", "size"] = "corners",
) -> Regions:
    """Read the regions of a sample's pictures from a cell of data.

    A region is four numbers, or a mapping with `box` or `bbox` and maybe `segmentation`, a list of
    polygons as COCO has them. A sample with one picture has a list of regions, or one; one with
    several has a list for each picture. Any of it may be JSON.

    Args:
        value: The cell; None has no regions.
        sizes: Width and height of each picture.
        scale: What the right and the lower edge are.
        box_is: Whether four numbers are corners, or left, top, width and height.

    Raises:
        ValueError: It is something else, a box has no area or lies outside, or its picture is not
            there.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise ValueError(f"found {value[:60]!r}, expected boxes as JSON") from error
    if value is None:
        return tuple(() for _ in sizes)
    if len(sizes) == 1 and (_is_region(value) or all(_is_region(one) for one in value)):
        value = [[value] if _is_region(value) else value]
    if not isinstance(value, Sequence) or len(value) != len(sizes):
        raise ValueError(
            f"found {str(value)[:60]!r}, expected a list of boxes for each of {len(sizes)} images"
        )
    return tuple(
        tuple(_regions_of(own, size, scale, box_is)) for own, size in zip(value, sizes, strict=True)
    )


def _is_region(value: Any) -> bool:
    is_four = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 4
    return isinstance(value, Mapping) or (
        is_four and all(isinstance(one, int | float) for one in value)
    )


def _regions_of(
    values: Any, size: tuple[int, int], scale: Scale, box_is: Literal["corners", "size"]
) -> Iterator[Region]:
    values = [] if values is None else values
    for value in [values] if _is_region(values) else values:
        if not _is_region(value):
            raise ValueError(f"found {str(value)[:60]!r}, expected a box: four numbers")
        outlines: Any = ()
        if isinstance(value, Mapping):
            outlines = value.get("segmentation") or ()
            found = value.get("box", value.get("bbox"))
            if found is None or not _is_region(found) or isinstance(found, Mapping):
                raise ValueError(f"found {str(value)[:60]!r}, expected a `box` of four numbers")
            if not isinstance(outlines, Sequence):
                # Cells hold anything, and a wrong one costs its sample as a wrong number does.
                raise ValueError(  # noqa: TRY004
                    "found a run-length encoded segmentation, expected polygons; convert it"
                )
            value = found
        left, top, right, bottom = (float(one) for one in value)
        if box_is == "size":
            right, bottom = left + right, top + bottom
        width, height = (1.0, 1.0) if scale == "pixels" else (size[0] / scale, size[1] / scale)
        box = (left * width, top * height, right * width, bottom * height)
        region = Region(
            box=box,
            outlines=tuple(
                tuple(float(one) * (height if k % 2 else width) for k, one in enumerate(outline))
                for outline in outlines
            ),
        )
        if is_outside((box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])):
            raise ValueError(
                f"found the box {list(value)}, which reaches beyond the image of {size[0]} x"
                f" {size[1]} pixels; the scale is {scale} and a box is {box_is}"
            )
        yield region
