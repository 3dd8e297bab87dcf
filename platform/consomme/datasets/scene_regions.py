"""Boxes and outlines of the objects of a scene that a text names, exactly."""

from __future__ import annotations

import re
from typing import Any

from consomme.datasets.scenes import COLORS, POSITIONS, SHAPES, SIZE_PX, Scene, outline_of, plural

_HALF_PX = SIZE_PX // 2
_NAMED = re.compile(
    rf"\b(?:(?P<color>{'|'.join(COLORS)})\s+)?"
    rf"(?P<shape>{'|'.join([*(plural(one) for one in SHAPES), *SHAPES])}|objects?)\b"
)
_WORD = re.compile(r"\b(?:word|written|text)\b")


def named_regions(scene: Scene, text: str) -> list[dict[str, Any]]:
    """Return the regions of what a text names: box and outline of objects, and the word's quadrant.

    A text that names nothing in particular is about all of the scene; one that names what is not
    there is about nothing in it.

    Args:
        scene: The scene.
        text: A question or a caption.

    Returns:
        Mappings with `box` in pixels and `segmentation`, as `read_regions` takes them; the outline
        of a word is its quadrant.
    """
    text = text.lower()
    named = [(match["color"], match["shape"]) for match in _NAMED.finditer(text)]
    particular = [one for one in named if one[0] or not one[1].startswith("object")]
    is_about_word = _WORD.search(text) is not None
    is_general = not particular and not is_about_word
    regions: list[dict[str, Any]] = [
        {"box": list(item.box_px), "segmentation": [outline_of(item)]}
        for item in scene.objects
        if is_general
        or any(
            shape in (item.shape, plural(item.shape))
            or (shape.startswith("object") and color == item.color)
            for color, shape in particular
        )
    ]
    if scene.word and scene.word_position and (is_general or is_about_word):
        row, column = divmod(POSITIONS.index(scene.word_position), 2)
        left, top = column * _HALF_PX, row * _HALF_PX
        right, bottom = left + _HALF_PX, top + _HALF_PX
        corners = [left, top, right, top, right, bottom, left, bottom]
        regions.append({"box": [left, top, right, bottom], "segmentation": [corners]})
    return regions
