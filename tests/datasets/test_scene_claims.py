"""Claims of hand-written captions, with expected results worked out by hand."""

import pytest

from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scenes import Scene, SceneObject


def item(size: str, color: str, shape: str, position: str) -> SceneObject:
    return SceneObject(
        shape=shape, color=color, size=size, position=position, center_px=(15, 15), radius_px=6
    )


RED = item("large", "red", "circle", "top left")
BLUE = item("small", "blue", "square", "bottom right")


def scene(*objects: SceneObject, word: str | None = None, at: str | None = None) -> Scene:
    return Scene(
        objects=objects, word=word, word_position=at, background=(255, 255, 255), style="filled"
    )


TWO = scene(RED, BLUE)
WORD = scene(RED, word="cat", at="bottom left")


@pytest.mark.parametrize(
    ("text", "num_true", "false", "num_missing"),
    [
        # Whole, partial, in other words, in capitals.
        (
            "a large red circle at the top left and a small blue square at the bottom right",
            8,
            [],
            0,
        ),
        ("a large red circle at the top left.", 4, [], 4),
        ("A BIG RED CIRCLE in the top left corner!", 4, [], 4),
        ("a tiny square", 2, [], 6),
        ("there is an object at the top left", 1, [], 7),
        ("a large object", 1, [], 7),
        # A wrong attribute is false, but not missing too.
        ("a large green circle at the top left", 3, ["object 1: color green"], 4),
        ("a red circle at the bottom left", 2, ["object 1: position bottom left"], 5),
        # All claims about an object that is not in the picture are false.
        ("a pink heart", 0, ["pink heart: color pink", "pink heart: shape heart"], 8),
        ("a small object at the top right", 0, 2, 8),
        # Two mentions cannot be the same object, unless the second one has "the".
        (
            "a red circle and a red circle",
            2,
            ["red circle: color red", "red circle: shape circle"],
            6,
        ),
        ("a red circle. the circle is at the top left", 3, [], 5),
        # Counts.
        ("two objects", 1, [], 8),
        ("three objects", 0, ["three objects"], 8),
        ("one circle", 1, [], 7),
        ("no crosses", 1, [], 8),
        ("two circles", 0, ["two circle"], 7),
        # Relations.
        ("the circle is left of the square", 3, [], 6),
        ("the circle is to the right of the square", 2, ["red circle right of blue square"], 6),
        ("the square is below the red circle", 4, [], 5),
        ("a circle above a pink heart", 1, 3, 7),
        # No claim at all.
        ("", 0, [], 8),
        ("click here to enlarge", 0, [], 8),
        ("a beautiful picture of the sea", 0, [], 8),
    ],
)
def test_claims_about_two_objects(
    text: str, num_true: int, false: list[str] | int, num_missing: int
) -> None:
    claims = check_caption(TWO, text)
    assert len(claims.true) == num_true, claims
    if isinstance(false, int):
        assert len(claims.false) == false
    else:
        assert sorted(claims.false) == sorted(false)
    assert len(claims.missing) == num_missing, claims


@pytest.mark.parametrize(
    ("text", "num_true", "false", "num_missing"),
    [
        ('a large red circle at the top left. the word "cat" at the bottom left.', 6, [], 0),
        ("the word is cat", 1, [], 4),
        ('the text reads "dog"', 0, ["word dog"], 4),
        ('the word "cat" at the top right', 1, ["word at top right"], 4),
        ("a word at the bottom left", 0, [], 5),
        ("no word is written", 0, [], 5),
        # A drawn word that names a shape is not a shape.
        ('a circle and the word "star"', 1, ["word star"], 3),
    ],
)
def test_claims_about_words(text: str, num_true: int, false: list[str], num_missing: int) -> None:
    claims = check_caption(WORD, text)
    assert len(claims.true) == num_true, claims
    assert list(claims.false) == false
    assert len(claims.missing) == num_missing, claims


def test_a_word_where_none_is_drawn_is_false() -> None:
    assert check_caption(TWO, 'the word "cat"').false == ("word cat",)


def test_mentions_are_matched_as_a_whole_and_in_any_order() -> None:
    twins = scene(
        item("large", "red", "circle", "top left"), item("small", "red", "circle", "bottom right")
    )
    for text in (
        "a red circle and a large red circle at the top left",
        "a large red circle at the top left and a red circle",
        "the red circle and the large red circle at the top left",
    ):
        claims = check_caption(twins, text)
        assert not claims.false, text
        assert len(claims.missing) == (2 if text.startswith("a") else 4)


def test_counted_mentions_state_what_all_members_share() -> None:
    three = scene(
        item("large", "red", "circle", "top left"),
        item("small", "red", "circle", "top right"),
        item("small", "blue", "star", "bottom left"),
    )
    claims = check_caption(three, "two red circles and a blue star")
    assert claims.true == ("two red circle", "object 3: color blue", "object 3: shape star")
    assert not claims.false
    assert "object 1: size large" in claims.missing
    assert "object 1: color red" not in claims.missing
