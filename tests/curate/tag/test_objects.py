"""Main objects: what a reader would say a caption is about."""

from collections import Counter

import pytest
from tests.curate.tag.cases import tagger_input
from tests.curate.tag.test_text import no_model

from consomme.base.errors import RecipeError
from consomme.curate.tag.object_words import HINTS, WORDS
from consomme.curate.tag.objects import Objects, singular
from consomme.curate.tag.registry import TAGGERS
from consomme.datasets import emoji, scenes


def tagged(*texts: str, **words: tuple[str, ...]) -> dict[str, list]:
    return dict(Objects(words=words).open(no_model)([tagger_input(text) for text in texts]).columns)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a man eating a hot dog in front of a coffee shop", ["person", "food", "building"]),
        ("Two puppies and a kitten, on the grass.", ["animal", "plant"]),
        ("Children's houses", ["building"]),
        ("apple tree", ["plant"]),
        ("dogs, cats; food", ["animal", "food"]),
        ("a woman’s face", ["person"]),
        ("lion face", ["animal"]),
        ("SMILING FACE", ["person"]),
        ("cookies with leaves", ["food", "plant"]),
        ("a stop sign and a poster", ["text"]),
        ("a teddy bear on a sofa", []),
        ("a doghouse-shaped catalogue", ["text"]),
        ("a red sports car", []),
        ("ein Hund und eine Katze", []),
        ("", []),
    ],
)
def test_named_objects_in_their_order(text: str, objects: list[str]) -> None:
    assert tagged(text)["objects"] == [objects]
    assert tagged(text)["object"] == [objects[0] if objects else "other"]


def test_the_main_object_is_named_most_often() -> None:
    found = tagged("a dog beside a tree, flowers and grass", "a tree with two dogs and a cat")
    assert found["object"] == ["plant", "animal"]
    assert found["objects"] == [["animal", "plant"], ["plant", "animal"]]


def test_a_recipe_adds_words_objects_and_exceptions() -> None:
    texts = ("a red car and two trucks", "a police dog", "a city with a wall", "a fox")
    words = {"vehicle": ("car", "truck"), "other": ("fox",), "building": ("city wall", "wall")}
    assert tagged(*texts, **words)["object"] == ["vehicle", "animal", "building", "other"]
    with pytest.raises(RecipeError, match=r"words: found 'vehicle': \['', 'car'\]"):
        TAGGERS.build({"name": "objects", "words": {"vehicle": ["", "car"]}})


def test_plurals() -> None:
    found = [singular(word) for word in ("boxes", "ladies", "buses", "grass", "cactus", "men")]
    assert found == ["box", "lady", "buse", "grass", "cactus", "man"]
    listed = [word.strip() for text in WORDS.values() for word in text.split(",")]
    assert len(listed) == len(set(listed)), "a word is listed twice"
    assert set(HINTS) == set(WORDS) == {"person", "text", "building", "food", "animal", "plant"}


def test_emoji_get_objects_and_scenes_of_shapes_none() -> None:
    found = Counter(tagged(*(entry.name for entry in emoji.load("noto")))["object"])
    assert {name: found[name] for name in WORDS} == {
        "person": 486,
        "text": 65,
        "building": 35,
        "food": 114,
        "animal": 145,
        "plant": 33,
    }
    captions = [
        scenes.caption(scene) for seed in range(50) if not (scene := scenes.make_scene(seed)).word
    ]
    assert set(tagged(*captions)["object"]) == {"other"}
