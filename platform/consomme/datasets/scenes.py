"""Rendered scenes with exact ground truth: captions, questions, boxes and drawn words.

A scene has one to three objects, each in its own quadrant, and sometimes a drawn word in a free
quadrant. It is simple enough for a nano VLM to master, and rich enough that colour, shape, size,
count, position, relation and reading are separate skills. `scene_claims` checks captions.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (40, 150, 50),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 30),
    "purple": (130, 50, 160),
    "orange": (245, 130, 20),
    "pink": (245, 130, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES = ("small", "large")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
WORDS = (
    "cat dog sun sky tea cup hat box car bus fox owl key map pen ice jam zoo egg bee oak toy run"
    " yes"
).split()
NUMBERS = ("no", "one", "two", "three")
RELATIONS = ("left of", "right of", "above", "below")
QUESTION_KINDS = (
    "color",
    "size",
    "position",
    "shape",
    "count",
    "exists",
    "relation",
    "word",
)
"""All kinds of questions that `questions` generates."""
SIZE_PX = 60


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One drawn object."""

    shape: str
    color: str
    size: str
    position: str
    center_px: tuple[int, int]
    """Centre (x, y) in pixels, origin at the top left."""

    radius_px: int

    @property
    def box_px(self) -> tuple[int, int, int, int]:
        """Bounding box (x1, y1, x2, y2), half-open."""
        (x, y), r = self.center_px, self.radius_px
        return (x - r, y - r, x + r + 1, y + r + 1)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Full description of a picture; `render` draws it."""

    objects: tuple[SceneObject, ...]
    word: str | None
    """The drawn word in lower case, or None."""

    word_position: str | None
    background: tuple[int, int, int]
    style: str
    """`filled` objects on a light background, or `outline`: strokes on a dark background."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its only correct answer."""

    kind: str
    question: str
    answer: str


def make_scene(seed: int, style: str = "filled") -> Scene:
    """Generate the scene of a seed; the same seed gives the same scene on every machine.

    Args:
        seed: Any integer; scenes of different seeds are independent.
        style: `filled` or `outline`.
    """
    rng = random.Random(f"scene-{seed}")
    num_objects = rng.choice((1, 2, 2, 3, 3))
    places = rng.sample(POSITIONS, 4)
    objects = [
        draw_object(rng, place) for place in sorted(places[:num_objects], key=POSITIONS.index)
    ]
    word = rng.choice(WORDS) if rng.random() < 0.4 else None
    light = rng.randint(215, 255)
    ground = (light, min(255, light + rng.randint(-8, 8)), min(255, light + rng.randint(-8, 8)))
    if style == "outline":
        ground = (255 - ground[0] + 45, 255 - ground[1] + 50, 255 - ground[2] + 60)
    return Scene(
        objects=tuple(objects),
        word=word,
        word_position=places[3] if word else None,
        background=ground,
        style=style,
    )


def draw_object(rng: random.Random, position: str, size: str | None = None) -> SceneObject:
    """Draw an object in a quadrant, which it does not leave.

    Args:
        rng: Source of the draws; their order is fixed, or scenes of a seed would change.
        position: The quadrant.
        size: Of the object; None draws it.
    """
    size = size or rng.choice(SIZES)
    radius = rng.randint(5, 6) if size == "small" else rng.randint(10, 12)
    half = SIZE_PX // 2
    slack = max(half // 2 - radius - 1, 0)
    row, column = divmod(POSITIONS.index(position), 2)
    center = (
        column * half + half // 2 + rng.randint(-slack, slack),
        row * half + half // 2 + rng.randint(-slack, slack),
    )
    return SceneObject(
        shape=rng.choice(SHAPES),
        color=rng.choice(tuple(COLORS)),
        size=size,
        position=position,
        center_px=center,
        radius_px=radius,
    )


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return the corner points of a shape of radius r around (x, y)."""
    if shape == "square":
        s = r * 0.88
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)]
    if shape == "star":
        return [
            (
                x + (r if k % 2 == 0 else r * 0.42) * math.sin(math.pi * k / 5),
                y - (r if k % 2 == 0 else r * 0.42) * math.cos(math.pi * k / 5),
            )
            for k in range(10)
        ]
    if shape == "cross":
        t = r * 0.34
        quarter = [(t, -r), (t, -t), (r, -t), (r, t), (t, t), (t, r)]
        return [(x + a, y + b) for a, b in quarter] + [(x - a, y - b) for a, b in quarter]
    if shape == "heart":
        steps = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (
                x + r * math.sin(t) ** 3,
                y
                - r
                * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 16,
            )
            for t in steps
        ]
    return [
        (x + r * math.cos(math.pi * k / 24), y + r * math.sin(math.pi * k / 24)) for k in range(48)
    ]


def outline_of(item: SceneObject) -> list[float]:
    """Return the outline of an object as x1, y1, x2, y2, … in pixels."""
    points = _outline(item.shape, *item.center_px, item.radius_px)
    return [edge for point in points for edge in point]


def render(scene: Scene) -> Image.Image:
    """Draw a scene as a 60 px RGB picture, antialiased by drawing at four times the size."""
    zoom = 4
    image = Image.new("RGB", (SIZE_PX * zoom, SIZE_PX * zoom), scene.background)
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        x, y = (c * zoom for c in item.center_px)
        points = _outline(item.shape, x, y, item.radius_px * zoom)
        color = COLORS[item.color]
        if scene.style == "outline":
            bright = color if item.color != "black" else (0, 0, 0)
            pen.line([*points, points[0], points[1]], fill=bright, width=2 * zoom, joint="curve")
        else:
            pen.polygon(points, fill=color)
    if scene.word and scene.word_position:
        row, column = divmod(POSITIONS.index(scene.word_position), 2)
        font = ImageFont.load_default(size=13 * zoom)
        at = ((column * 30 + 15) * zoom, (row * 30 + 15) * zoom)
        ink = (235, 235, 235) if scene.style == "outline" else (50, 50, 60)
        pen.text(at, scene.word.upper(), fill=ink, font=font, anchor="mm")
    return image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


def encode(image: Image.Image) -> bytes:
    """Encode a rendered scene as PNG; the bytes depend only on the pixels."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return out.getvalue()


def caption(scene: Scene) -> str:
    """Return the complete caption of a scene, in reading order."""
    parts = [f"a {o.size} {o.color} {o.shape} at the {o.position}" for o in scene.objects]
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    if scene.word:
        text += f'. the word "{scene.word}" at the {scene.word_position}'
    return text + "."


def _unique(scene: Scene, attribute: str) -> list[SceneObject]:
    values = [getattr(o, attribute) for o in scene.objects]
    return [o for o in scene.objects if values.count(getattr(o, attribute)) == 1]


def relation_holds(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Check whether `first` is in the relation to `second`, by quadrants."""
    row_a, column_a = divmod(POSITIONS.index(first.position), 2)
    row_b, column_b = divmod(POSITIONS.index(second.position), 2)
    return {
        "left of": column_a < column_b,
        "right of": column_a > column_b,
        "above": row_a < row_b,
        "below": row_a > row_b,
    }[relation]


def plural(shape: str) -> str:
    """Return the English plural of a shape name."""
    return shape + ("es" if shape == "cross" else "s")


def questions(scene: Scene, seed: int) -> list[Question]:
    """Generate questions with an unambiguous answer, in a fixed order; at most two per kind."""
    rng = random.Random(f"question-{seed}")
    selected: list[Question] = []

    def ask(kind: str, question: str, answer: str) -> None:
        selected.append(Question(kind=kind, question=question, answer=answer))

    by_shape, by_color = _unique(scene, "shape"), _unique(scene, "color")
    if by_shape:
        ask("color", f"what color is the {(o := rng.choice(by_shape)).shape}?", o.color)
        ask("size", f"is the {(o := rng.choice(by_shape)).shape} small or large?", o.size)
        ask("position", f"where is the {(o := rng.choice(by_shape)).shape}?", o.position)
    if by_color:
        ask("shape", f"what shape is the {(o := rng.choice(by_color)).color} object?", o.shape)
    target = rng.choice((rng.choice(scene.objects).shape, rng.choice(SHAPES)))
    number = sum(o.shape == target for o in scene.objects)
    ask("count", f"how many {plural(target)} are there?", NUMBERS[number])
    ask("count", "how many objects are there?", NUMBERS[len(scene.objects)])
    real = rng.choice(scene.objects)
    color, shape = real.color, real.shape
    if rng.random() < 0.5:
        color, shape = rng.choice(((rng.choice(tuple(COLORS)), shape), (color, rng.choice(SHAPES))))
    there = any(o.color == color and o.shape == shape for o in scene.objects)
    ask("exists", f"is there a {color} {shape}?", "yes" if there else "no")
    if len(by_shape) >= 2:
        first, second = rng.sample(by_shape, 2)
        relation = rng.choice(RELATIONS)
        holds = "yes" if relation_holds(first, relation, second) else "no"
        ask("relation", f"is the {first.shape} {relation} the {second.shape}?", holds)
    ask("word", "what word is written?", scene.word or "none")
    return selected
