"""Mask regions of a decoded picture, before any model prepares it.

Contrastive region guidance compares what a model says of a picture with what it says of the same
picture without a region. A pixel x is inside a box from x1 to x2 if x1 <= x < x2. Boxes are united:
their hull is masked only if `area` says so, which is one of the ablations of the paper.

Source: CRG, arXiv 2403.02325, section 3; the authors' code sets the pixels to 0 on the raw image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

# Shapes: H height and W width of a picture, in pixels.

PixelBox = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels of the upright picture; half-open."""

Mask = Literal["blackout", "blur"]
"""How pixels are masked: set to black, as in the paper; or blurred beyond recognition."""

Area = Literal["boxes", "hull", "first", "image", "segments"]
"""Which pixels are masked: those of all `boxes`, as in the paper; of the box around them all; of
the `first` one only; all of the `image`; or those inside the outlines that came with the boxes."""

_SLACK_PX = 1e-6
"""An edge at 6.0000000001 is at 6: fractions times sizes are not exact."""

_BLUR_FRACTION = 0.25
"""Radius of the blur, of the longer side."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of one picture."""

    box: PixelBox

    outlines: tuple[tuple[float, ...], ...] = ()
    """Polygons x1, y1, x2, y2, … in pixels, as COCO's `segmentation` has them; empty if not known.
    Their union is the region."""

    def __post_init__(self) -> None:
        """Check the order of the corners, and the outlines.

        Raises:
            ValueError: It has no area, a corner is not finite, or an outline is no polygon.
        """
        left, top, right, bottom = self.box
        if not all(map(math.isfinite, self.box)):
            raise ValueError(f"found the box {list(self.box)}, expected four finite numbers")
        if not (left < right and top < bottom):
            raise ValueError(
                f"found the box {list(self.box)}, expected left, top, right, bottom in pixels with"
                " left < right and top < bottom"
            )
        for outline in self.outlines:
            if len(outline) < 6 or len(outline) % 2 or not all(map(math.isfinite, outline)):
                raise ValueError(
                    f"found an outline of {len(outline)} numbers, expected x1, y1, x2, y2, …:"
                    " three points or more"
                )


def masked(
    image: Image.Image,
    regions: Sequence[Region],
    *,
    mask: Mask = "blackout",
    area: Area = "boxes",
) -> Image.Image:
    """Return a copy of a picture without some regions; the picture itself if there are none.

    Args:
        image: As it was decoded; of any mode, the copy is RGB.
        regions: In its pixels; parts beyond its edges are left out.
        mask: What becomes of the pixels.
        area: Which pixels.

    Raises:
        ValueError: `area` is `segments`, and a region has no outline.
    """
    inside_HW = mask_of(image.size, regions, area)
    if not inside_HW.any():
        return image
    image = image.convert("RGB")
    if mask == "blur":
        radius = _BLUR_FRACTION * max(image.size)
        hidden = image.filter(ImageFilter.GaussianBlur(radius))
    else:
        hidden = Image.new("RGB", image.size)
    where = Image.fromarray(inside_HW.astype(np.uint8) * 255, "L")
    return Image.composite(hidden, image, where)


def masked_one_by_one(
    image: Image.Image, regions: Iterable[Region], *, mask: Mask = "blackout"
) -> list[Image.Image]:
    """Return a copy for each region, without that region alone; for ranking regions."""
    return [masked(image, [region], mask=mask) for region in regions]


def mask_of(size: tuple[int, int], regions: Sequence[Region], area: Area) -> NDArray[np.bool_]:
    """Return which pixels (H, W) of a picture are masked.

    Args:
        size: Width and height.
        regions: In pixels.
        area: Which pixels.

    Raises:
        ValueError: `area` is `segments`, and a region has no outline.
    """
    width, height = size
    inside_HW = np.zeros((height, width), bool)
    if not regions:
        return inside_HW
    if area == "image":
        inside_HW[:] = True
    elif area == "segments":
        _fill_outlines(inside_HW, regions)
    else:
        boxes = [region.box for region in regions]
        if area == "first":
            boxes = boxes[:1]
        elif area == "hull":
            boxes = [hull(boxes)]
        for left, top, right, bottom in boxes:
            columns = slice(_first(left), _first(right))
            inside_HW[_first(top) : _first(bottom), columns] = True
    return inside_HW


def hull(boxes: Sequence[PixelBox]) -> PixelBox:
    """Return the smallest box around some boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _first(edge: float) -> int:
    """Return the first pixel at or after an edge; 0 for one before the picture."""
    return max(0, math.ceil(edge - _SLACK_PX))


def _fill_outlines(inside_HW: NDArray[np.bool_], regions: Sequence[Region]) -> None:
    height, width = inside_HW.shape
    for region in regions:
        if not region.outlines:
            raise ValueError(
                f"area segments: found no outline beside the box {list(region.box)}; expected one"
                " of each region, or area boxes"
            )
        for outline in region.outlines:
            drawn = Image.new("1", (width, height))
            points = list(zip(outline[::2], outline[1::2], strict=True))
            ImageDraw.Draw(drawn).polygon(points, fill=1)
            inside_HW |= np.asarray(drawn)
