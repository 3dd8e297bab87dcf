"""Scenes: the same on every machine, every caption and answer true by an independent reading."""

import hashlib
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scenes import (
    COLORS,
    POSITIONS,
    SHAPES,
    SIZE_PX,
    Scene,
    SceneObject,
    caption,
    encode,
    make_scene,
    questions,
    render,
)

DIGEST = "140300c35722f586"
"""Of captions and pixels of forty scenes; changes only when scenes are changed on purpose."""


def digest() -> str:
    found = hashlib.sha256()
    for seed, style in itertools.product(range(20), ("filled", "outline")):
        scene = make_scene(seed, style)
        found.update(caption(scene).encode())
        found.update(np.asarray(render(scene)).tobytes())
    return found.hexdigest()[:16]


def test_scenes_are_the_same_in_every_process() -> None:
    program = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == DIGEST, done.stderr
    assert digest() == DIGEST


def test_every_caption_is_whole_and_true() -> None:
    for seed, style in itertools.product(range(600), ("filled", "outline")):
        scene = make_scene(seed, style)
        claims = check_caption(scene, caption(scene))
        assert not claims.false, (seed, claims)
        assert not claims.missing, (seed, claims)
        # Four attributes of each object, and the word with its place.
        assert len(claims.true) == 4 * len(scene.objects) + 2 * bool(scene.word)


def test_style_changes_the_drawing_and_nothing_else() -> None:
    filled, outline = make_scene(5), make_scene(5, "outline")
    assert filled.objects == outline.objects
    assert (filled.word, filled.word_position) == (outline.word, outline.word_position)
    assert np.abs(np.asarray(render(filled)).mean() - np.asarray(render(outline)).mean()) > 50


def test_objects_lie_in_their_quadrant_and_are_drawn_there() -> None:
    half = SIZE_PX // 2
    for seed in range(100):
        scene = make_scene(seed)
        pixels = np.asarray(render(scene)).astype(int)
        assert 1 <= len(scene.objects) <= 3
        for item in scene.objects:
            row, column = divmod(POSITIONS.index(item.position), 2)
            x1, y1, x2, y2 = item.box_px
            assert column * half <= x1 < x2 <= (column + 1) * half + 1
            assert row * half <= y1 < y2 <= (row + 1) * half + 1
            x, y = item.center_px
            assert np.abs(pixels[y, x] - COLORS[item.color]).max() < 40


def test_the_picture_depends_on_every_fact() -> None:
    assert encode(render(make_scene(1))) == encode(render(make_scene(1)))
    assert len({encode(render(make_scene(seed))) for seed in range(200)}) == 200


def answer(scene: Scene, question: str) -> str:
    """Answer a question from the coordinates of the scene, by reading the question."""

    def only(items: list[SceneObject]) -> SceneObject:
        assert len(items) == 1, question
        return items[0]

    def named(noun: str) -> list[SceneObject]:
        singular = {s: s for s in SHAPES} | {s + "s": s for s in SHAPES} | {"crosses": "cross"}
        return [o for o in scene.objects if o.shape == singular[noun]]

    def side(item: SceneObject) -> tuple[bool, bool]:
        return item.center_px[0] >= SIZE_PX // 2, item.center_px[1] >= SIZE_PX // 2

    numbers = ["no", "one", "two", "three"]
    if found := re.fullmatch(r"what color is the (\w+)\?", question):
        return only(named(found[1])).color
    if found := re.fullmatch(r"is the (\w+) small or large\?", question):
        return "small" if only(named(found[1])).radius_px < 8 else "large"
    if found := re.fullmatch(r"where is the (\w+)\?", question):
        right, low = side(only(named(found[1])))
        return f"{'bottom' if low else 'top'} {'right' if right else 'left'}"
    if found := re.fullmatch(r"what shape is the (\w+) object\?", question):
        return only([o for o in scene.objects if o.color == found[1]]).shape
    if question == "how many objects are there?":
        return numbers[len(scene.objects)]
    if found := re.fullmatch(r"how many (\w+) are there\?", question):
        return numbers[len(named(found[1]))]
    if found := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return "yes" if any(o.color == found[1] for o in named(found[2])) else "no"
    if found := re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", question):
        (x1, y1), (x2, y2) = side(only(named(found[1]))), side(only(named(found[3])))
        holds = {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}
        return "yes" if holds[found[2]] else "no"
    assert question == "what word is written?", question
    return scene.word or "none"


def test_every_answer_follows_from_the_scene() -> None:
    kinds: dict[str, set[str]] = {}
    for seed in range(800):
        scene = make_scene(seed)
        for asked in questions(scene, seed):
            assert asked.answer == answer(scene, asked.question), (seed, asked)
            kinds.setdefault(asked.kind, set()).add(asked.answer)
    expected = {"color", "size", "position", "shape", "count", "exists", "relation", "word"}
    assert set(kinds) == expected
    assert kinds["exists"] == kinds["relation"] == {"yes", "no"}
    assert kinds["count"] == {"no", "one", "two", "three"}


@pytest.mark.parametrize("kind", ["exists", "relation"])
def test_always_saying_yes_or_no_is_no_better_than_guessing(kind: str) -> None:
    asked = [q for s in range(800) for q in questions(make_scene(s), s) if q.kind == kind]
    share = sum(q.answer == "yes" for q in asked) / len(asked)
    assert 0.25 < share < 0.75
