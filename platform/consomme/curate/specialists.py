"""Rules for a specialist's data: which boxes a grounding specialist may learn from.

One decision is made here: a box that is nearly the whole picture says nothing about where a thing
is, and a crowd of one kind cannot be told apart by its name; so the one costs the box, the other
the picture. How boxes are written is `consomme.datasets.boxes`'s business, what is asked about them
`consomme.datasets.scene_tasks`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from consomme.base.errors import RecipeError
from consomme.curate.checks import check_fraction


@dataclass(frozen=True, kw_only=True)
class LabelledBox:
    """A thing in a picture and its place."""

    label: str
    """What it is: the class that crowds are counted by."""

    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax, half-open, in the unit that the picture's size is given in."""


@dataclass(frozen=True, kw_only=True)
class Grounded:
    """What is left of a picture's boxes."""

    boxes: tuple[LabelledBox, ...]
    """Those that may be learnt from, in their order; none if the picture is dropped."""

    num_large: int
    """Boxes that were dropped for their size."""

    num_outside: int
    """Boxes that were dropped because nothing of them lies in the picture."""

    crowded: tuple[str, ...]
    """Classes with too many boxes; any drops the picture."""


@dataclass(frozen=True, kw_only=True)
class GroundingRules:
    """Leave out boxes that are too large and pictures that are too crowded.

    Boxes go first: what was dropped does not count towards a crowd.
    Source: arXiv 2407.17453 (VILA²), which makes 4 M pictures of GRIT's 20 M this way.
    """

    max_area_fraction: float = 0.7
    """Largest share of the picture that a box may cover, in [0, 1]; the part inside counts."""

    max_per_class: int = 3
    """Most boxes of one class in a picture."""

    def __post_init__(self) -> None:
        """Check the limits."""
        check_fraction(self.max_area_fraction)
        if self.max_per_class < 1:
            raise RecipeError(f"max_per_class: found {self.max_per_class}, expected 1 or more")

    def __call__(self, boxes: Sequence[LabelledBox], *, width: float, height: float) -> Grounded:
        """Decide about the boxes of one picture of this size."""
        areas = [_area_inside(item.box, width, height) for item in boxes]
        limit = self.max_area_fraction
        fitting = [
            item
            for item, area in zip(boxes, areas, strict=True)
            if 0 < area and area / (width * height) <= limit
        ]
        counts = Counter(item.label for item in fitting)
        crowded = tuple(label for label, found in counts.items() if found > self.max_per_class)
        outside = sum(area <= 0 for area in areas)
        return Grounded(
            boxes=() if crowded else tuple(fitting),
            num_large=len(boxes) - len(fitting) - outside,
            num_outside=outside,
            crowded=crowded,
        )


def _area_inside(box: tuple[float, float, float, float], width: float, height: float) -> float:
    x1, y1, x2, y2 = box
    inside_x = min(x2, width) - max(x1, 0)
    inside_y = min(y2, height) - max(y1, 0)
    return max(inside_x, 0) * max(inside_y, 0)
