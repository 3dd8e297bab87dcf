"""Captions of scenes against hard negatives, and sets of four places, with exact truth.

The first are SugarCrepe's kind of test, the second What'sUp's, on rendered scenes: every false
caption is known to be false, since its claims are checked against the scene.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from consomme.datasets.negatives import Words, negative
from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scene_tasks import name_of
from consomme.datasets.scenes import (
    COLORS,
    SHAPES,
    Scene,
    caption,
    draw_object,
    make_scene,
    relation_holds,
)

SCENE_WORDS = Words(nouns=SHAPES, adjectives=(*COLORS, "small", "large"))
"""What negatives of scenes' captions speak of."""

PLACES = {
    "left": ("left of", ("top left", "top right")),
    "right": ("right of", ("top right", "top left")),
    "above": ("above", ("top left", "bottom left")),
    "below": ("below", ("bottom left", "top left")),
}
"""Place of a thing -> relation in captions, and the quadrants of the thing and of the other."""


@dataclass(frozen=True, kw_only=True)
class ScenePair:
    """A scene, its true caption, and false ones."""

    scene: Scene
    captions: tuple[str, ...]
    """The true one first."""

    kind: str
    """Rule of the negative, or the place."""

    group: tuple[str, ...] = ()
    """The set that it is one of."""


def is_false(scene: Scene, text: str) -> bool:
    """Whether a caption makes a claim that does not hold."""
    return bool(check_caption(scene, text).false)


def is_still_true(scene: Scene, text: str, true_caption: str) -> bool:
    """Whether a changed caption claims what the true one claims, and nothing false."""
    found, known = check_caption(scene, text), check_caption(scene, true_caption)
    return not found.false and set(found.true) >= set(known.true)


def negative_pairs(
    kinds: Sequence[str], first_seed: int, num: int, style: str
) -> Iterator[ScenePair]:
    """Yield scenes with their caption and one false caption by a rule, the rules in turn.

    A negative that is not false, by the scene, is left out, and the next scene is tried.
    """
    wanted = [kinds[k % len(kinds)] for k in range(num)]
    seeds = count(first_seed)
    for kind in wanted:
        for seed in seeds:
            scene = make_scene(seed, style)
            true = caption(scene)
            text = negative(kind, true, str(seed), SCENE_WORDS)
            if text is not None and is_false(scene, text):
                yield ScenePair(scene=scene, captions=(true, text), kind=kind)
                break


def place_sets(first_seed: int, num: int, style: str) -> Iterator[ScenePair]:
    """Yield sets of four scenes that differ in the place of one of two objects."""
    for seed in range(first_seed, first_seed + num):
        rng = random.Random(f"places-{seed}")
        ground = make_scene(seed, style).background
        shapes, colors = rng.sample(SHAPES, 2), rng.sample(tuple(COLORS), 2)
        size = rng.choice(("small", "large"))
        for place, (_, quadrants) in PLACES.items():
            first, second = (
                dataclasses.replace(draw_object(rng, quadrant, size), shape=shape, color=color)
                for quadrant, shape, color in zip(quadrants, shapes, colors, strict=True)
            )
            scene = Scene(
                objects=(first, second),
                word=None,
                word_position=None,
                background=ground,
                style=style,
            )
            assert relation_holds(first, PLACES[place][0], second)
            names = name_of(scene, first), name_of(scene, second)
            texts = {
                other: f"the {names[0]} is {relation} the {names[1]}."
                for other, (relation, _) in PLACES.items()
            }
            others = [text for other, text in texts.items() if other != place]
            yield ScenePair(
                scene=scene,
                captions=(texts[place], *others),
                kind=place,
                group=(str(seed),),
            )
