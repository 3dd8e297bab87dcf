"""Samples of several scenes: which of them holds something, what changed, documents of scenes.

The truth is known by construction. What stands where differs from task to task: `which` shows all
images before the question, `changes` has them in mid-sentence, `documents` is text and images in
turn, without a question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval

from consomme.base.sample import ImageRef, Turn, content_of
from consomme.datasets.scene_tasks import name_of
from consomme.datasets.scenes import (
    COLORS,
    POSITIONS,
    SIZES,
    Scene,
    SceneObject,
    caption,
    draw_object,
    make_scene,
)

ORDINALS = ("the first", "the second", "the third", "the fourth")
"""Answers to which image it is."""

NumScenes = Annotated[int, Interval(ge=2, le=len(ORDINALS))]
"""Scenes of a series."""

WHICH_KINDS = ("object", "color", "shape", "word", "describe")
"""What only one of the scenes has: a color and a shape, either of them, or a word; or the question
what one of them, by its number, shows."""

DESCRIBE_FRACTION = 0.5
"""Share of the series that ask to describe one of the scenes. They teach a model which image is
which: a caption says much about one image, a number very little about three."""

CHANGE_KINDS = ("color", "size", "position", "removed", "added")
"""What may differ between two scenes."""

CAPTION_KIND = "caption"
"""Kind of a document whose last text says what is in its image."""

MAX_OBJECTS = 3
"""Objects of a scene; the fourth quadrant may hold a word."""


@dataclass(frozen=True, kw_only=True)
class SceneSeries:
    """Several scenes, and what is said about them."""

    scenes: tuple[Scene, ...]
    """In the order of the images."""

    prompt: tuple[Turn, ...]
    """What comes before the answer: a user's turn; or the beginning of a document, up to its last
    image."""

    answer: str
    """The only correct one."""

    kind: str
    """What is asked, such as `color`."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of a training sample."""
        *before, last = self.prompt
        if last.role == "user":
            return (*self.prompt, Turn(role="assistant", content=self.answer))
        return (*before, replace(last, content=content_of([*last.parts, self.answer])))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between two scenes."""

    after: Scene
    """The second scene."""

    kind: str
    """One of `CHANGE_KINDS`."""

    text: str
    """Says what is different in it, without a full stop."""


def which(seed: int, style: str, num_scenes: int) -> SceneSeries:
    """Ask which of several scenes has something that no other has, or for a caption of one."""
    rng = random.Random(f"which-{seed}")
    scenes = tuple(make_scene(seed + number, style) for number in range(num_scenes))
    if rng.random() < DESCRIBE_FRACTION:
        target = rng.randrange(num_scenes)
        return SceneSeries(
            scenes=scenes,
            prompt=(Turn(role="user", content=f"describe {ORDINALS[target]} image."),),
            answer=caption(scenes[target]),
            kind="describe",
        )
    # The position first, so that all are equally frequent.
    for target in rng.sample(range(num_scenes), num_scenes):
        others = [scene for number, scene in enumerate(scenes) if number != target]
        unique = _unique_to(scenes[target], others)
        if unique:
            kind = rng.choice(sorted(unique))
            return SceneSeries(
                scenes=scenes,
                prompt=(Turn(role="user", content=f"which image has {rng.choice(unique[kind])}?"),),
                answer=ORDINALS[target],
                kind=kind,
            )
    # Each scene has what the others have: never seen, but possible.
    raise ValueError(f"the scenes from seed {seed} on do not differ")


def _unique_to(scene: Scene, others: Sequence[Scene]) -> dict[str, list[str]]:
    """List by kind what a scene has and the others have not."""
    seen = [_contents(other) for other in others]
    found: dict[str, list[str]] = {}
    for kind, phrases in _contents(scene).items():
        new = [one for one in phrases if not any(one in other[kind] for other in seen)]
        if new:
            found[kind] = new
    return found


def _contents(scene: Scene) -> dict[str, list[str]]:
    return {
        "object": [_a(f"{item.color} {item.shape}") for item in scene.objects],
        "color": [_a(f"{item.color} object") for item in scene.objects],
        "shape": [_a(item.shape) for item in scene.objects],
        "word": [f'the word "{scene.word}"'] if scene.word else [],
    }


def change(scene: Scene, rng: random.Random) -> Change:
    """Change one thing of a scene, drawn uniformly among the kinds that are possible."""
    free = [
        place
        for place in POSITIONS
        if place != scene.word_position and place not in {item.position for item in scene.objects}
    ]
    kinds = ["color", "size"]
    kinds += ["position"] if free else []
    kinds += ["removed"] if len(scene.objects) > 1 else []
    kinds += ["added"] if free and len(scene.objects) < MAX_OBJECTS else []
    kind = rng.choice(kinds)
    if kind == "added":
        new = draw_object(rng, rng.choice(free))
        text = f"{_a(f'{new.color} {new.shape}')} is new"
        return Change(after=_with_objects(scene, [*scene.objects, new]), kind=kind, text=text)
    item = rng.choice(scene.objects)
    kept = [other for other in scene.objects if other is not item]
    name = name_of(scene, item)
    if kind == "removed":
        return Change(after=_with_objects(scene, kept), kind=kind, text=f"the {name} is gone")
    if kind == "color":
        new = replace(item, color=rng.choice([color for color in COLORS if color != item.color]))
        text = f"the {name} is {new.color}"
    elif kind == "size":
        (size,) = (size for size in SIZES if size != item.size)
        new = replace(draw_object(rng, item.position, size), shape=item.shape, color=item.color)
        text = f"the {name} is {size}"
    else:
        place = rng.choice(free)
        new = replace(draw_object(rng, place, item.size), shape=item.shape, color=item.color)
        text = f"the {name} is at the {place}"
    return Change(after=_with_objects(scene, [*kept, new]), kind=kind, text=text)


def _with_objects(scene: Scene, objects: Sequence[SceneObject]) -> Scene:
    ordered = sorted(objects, key=lambda item: POSITIONS.index(item.position))
    return replace(scene, objects=tuple(ordered))


def changes(seed: int, style: str, num_scenes: int) -> SceneSeries:
    """Ask what is different between two scenes; one object is."""
    rng = random.Random(f"changes-{seed}")
    before = make_scene(seed, style)
    found = change(before, rng)
    content = content_of(["before: ", ImageRef(0), " after: ", ImageRef(1), " what is different?"])
    return SceneSeries(
        scenes=(before, found.after),
        prompt=(Turn(role="user", content=content),),
        answer=found.text,
        kind=found.kind,
    )


def document(seed: int, style: str, num_scenes: int) -> SceneSeries:
    """Write a document: each image is described, or compared with the one before."""
    rng = random.Random(f"document-{seed}")
    scenes: list[Scene] = []
    parts: list[str | ImageRef] = []
    kind, text = CAPTION_KIND, ""
    for number in range(num_scenes):
        parts += [text, ImageRef(number)]
        if number and rng.random() < COMPARED_FRACTION:
            found = change(scenes[-1], rng)
            scenes.append(found.after)
            kind, text = found.kind, f"{found.text}."
        else:
            scenes.append(make_scene(seed + number, style))
            kind, text = CAPTION_KIND, caption(scenes[-1])
    prompt = Turn(role="assistant", content=content_of(parts))
    return SceneSeries(scenes=tuple(scenes), prompt=(prompt,), answer=text, kind=kind)


COMPARED_FRACTION = 0.75
"""Share of the images of a document, the first one left out, that are compared with the one before;
the others are new scenes."""

SERIES: Mapping[str, Callable[[int, str, int], SceneSeries]] = {
    "which": which,
    "changes": changes,
    "documents": document,
}
"""Makes the series of a seed, of a style, with a number of scenes, by task."""


def series_from(
    task: str, first_seed: int, num: int, style: str, num_scenes: int
) -> Iterator[tuple[int, SceneSeries]]:
    """Yield series with their seeds; each takes as many seeds as it has scenes."""
    make = SERIES[task]
    for number in range(num):
        seed = first_seed + number * num_scenes
        yield seed, make(seed, style, num_scenes)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
