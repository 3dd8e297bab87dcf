"""Samples of several scenes: each says what is true of its images, and of no others."""

import random
from collections import Counter

import pytest
from PIL import Image

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageRef
from consomme.datasets import scenes
from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scene_series import (
    CHANGE_KINDS,
    ORDINALS,
    WHICH_KINDS,
    change,
    changes,
    document,
    series_from,
    which,
)
from consomme.datasets.scenes import COLORS, SHAPES, Scene, make_scene
from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.datasets.web_noise import add_noise
from consomme.vision.decode import decode

SOURCES = {"scene_which": 3, "scene_changes": 2, "scene_documents": 3}
STYLES = ("filled", "outline")


def holds(scene: Scene, question: str) -> bool:
    """Whether a scene has what is asked for, by the words of the question alone."""
    words = question.removesuffix("?").split()
    if "word" in words:
        return scene.word == words[-1].strip('"')
    colors, shapes = set(words) & set(COLORS), set(words) & set(SHAPES)
    return any(
        (not colors or item.color in colors) and (not shapes or item.shape in shapes)
        for item in scene.objects
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("num_scenes", [2, 3, 4])
def test_one_scene_only_has_what_is_asked_for(style, num_scenes):
    seeds = range(0, 500 * num_scenes, num_scenes)
    asked = [which(seed, style, num_scenes) for seed in seeds]
    described = [one for one in asked if one.kind == "describe"]
    assert 0.3 < len(described) / len(asked) < 0.7
    for one in described:
        (number,) = (n for n, word in enumerate(ORDINALS) if word in one.prompt[0].text)
        claims = check_caption(one.scenes[number], one.answer)
        assert not claims.false
        assert not claims.missing
    asked = [one for one in asked if one.kind != "describe"]
    for one in asked:
        (user,) = one.prompt
        found = [holds(scene, user.text) for scene in one.scenes]
        assert sum(found) == 1, user.text
        assert ORDINALS[found.index(True)] == one.answer
        assert len(one.scenes) == num_scenes
    answers = Counter(one.answer for one in asked)
    assert max(answers.values()) < 1.3 * len(asked) / num_scenes
    assert {one.kind for one in asked} == set(WHICH_KINDS) - {"describe"}


def differences(before: Scene, after: Scene) -> list[tuple[object, object]]:
    """Pairs of objects, paired as well as possible, that are not the same."""

    def of(scene: Scene) -> set[tuple[str, str, str, str]]:
        return {(o.shape, o.color, o.size, o.position) for o in scene.objects}

    gone, new = sorted(of(before) - of(after)), sorted(of(after) - of(before))
    return (
        [*zip(gone, new, strict=False)]
        + [(one, None) for one in gone[len(new) :]]
        + [(None, one) for one in new[len(gone) :]]
    )


@pytest.mark.parametrize("style", STYLES)
def test_one_object_differs_and_the_text_says_how(style):
    kinds = Counter()
    for seed in range(400):
        before = make_scene(seed, style)
        found = change(before, random.Random(seed))
        ((old, new),) = differences(before, found.after)
        kinds[found.kind] += 1
        says = found.text.split()
        if found.kind == "removed":
            assert new is None
            assert found.text.endswith(" is gone")
            assert old[0] in says
        elif found.kind == "added":
            assert old is None
            assert found.text in (f"a {new[1]} {new[0]} is new", f"an {new[1]} {new[0]} is new")
        else:
            at = ("shape", "color", "size", "position").index(found.kind)
            assert [old[k] == new[k] for k in range(4)] == [k != at for k in range(4)]
            assert found.text.endswith(f" {new[at]}")
            assert old[0] in says
        # One object in a quadrant, in reading order, clear of the word, inside the picture.
        places = [o.position for o in found.after.objects]
        assert places == sorted(set(places), key=scenes.POSITIONS.index)
        assert found.after.word_position not in places
        assert all(0 <= edge <= 60 for o in found.after.objects for edge in o.box_px)
        assert (found.after.word, found.after.background) == (before.word, before.background)
        # What is named is one object before.
        if found.kind != "added":
            name = found.text.removeprefix("the ").split(" is ")[0]
            named = [o for o in before.objects if all(w in vars_of(o) for w in words_of(name))]
            assert len(named) == 1, found.text
    assert set(kinds) == set(CHANGE_KINDS)


def vars_of(item: scenes.SceneObject) -> set[str]:
    return {item.shape, item.color, item.size, *item.position.split()}


def words_of(name: str) -> list[str]:
    return [word for word in name.split() if word not in ("at", "the")]


def test_images_stand_where_the_tasks_say():
    (user,) = which(0, "filled", 3).prompt
    assert user.image_indices == (), "all images before the text"
    (user,) = changes(0, "filled", 2).prompt
    assert [part if isinstance(part, str) else part.index for part in user.parts] == [
        "before: ", 0, " after: ", 1, " what is different?",
    ]  # fmt: skip
    for seed in range(0, 150, 3):
        one = document(seed, "filled", 3)
        (turn,) = one.turns
        assert turn.role == "assistant"
        assert [isinstance(part, ImageRef) for part in turn.parts] == [True, False] * 3
        assert turn.image_indices == (0, 1, 2)
        assert turn.parts[-1] == one.answer
        assert one.prompt[0].parts == turn.parts[:-1]


def test_a_document_says_what_is_true_of_the_image_before_each_text():
    num_captions = 0
    for seed in range(0, 300, 3):
        one = document(seed, "filled", 3)
        texts = [part for part in one.turns[0].parts if isinstance(part, str)]
        for number, (scene, text) in enumerate(zip(one.scenes, texts, strict=True)):
            claims = check_caption(scene, text)
            if text == scenes.caption(scene):
                num_captions += 1
                assert not claims.false
                assert not claims.missing
                continue
            assert number, "the first image has none to be compared with"
            assert len(differences(one.scenes[number - 1], scene)) == 1
    assert 100 < num_captions < 200, "the first of each, and about a quarter of the others"


@pytest.mark.parametrize(("name", "num_images"), SOURCES.items())
def test_sources_give_the_same_samples_each_time(name, num_images):
    source = SAMPLE_SOURCES.build({"name": name, "num": 20})
    samples = list(source())
    assert samples == list(source())
    assert len({sample.sample_id for sample in samples}) == 20
    made = [one for _, one in series_from(source.task, source.first_seed, 20, "filled", num_images)]
    for sample, one in zip(samples, made, strict=True):
        assert len(sample.images) == num_images
        assert sample.turns == one.turns
        for image, scene in zip(sample.images, one.scenes, strict=True):
            decoded = decode(image.data)
            assert isinstance(decoded, Image.Image)
            assert decoded.tobytes() == scenes.render(scene).tobytes()
    assert not any("scene_seed" in sample.meta for sample in samples), "that is of one scene"


@pytest.mark.parametrize("name", ["scene_which", "scene_documents"])
def test_the_number_of_images_is_chosen(name):
    for number in (2, 4):
        source = SAMPLE_SOURCES.build({"name": name, "num": 3, "num_images": number})
        assert {len(sample.images) for sample in source()} == {number}
    with pytest.raises(RecipeError, match="num_images: found 5, expected"):
        SAMPLE_SOURCES.build({"name": name, "num_images": 5})


def test_noise_reaches_all_images_and_no_document():
    samples = list(SAMPLE_SOURCES.build({"name": "scene_which", "num": 4})())
    noisy = add_noise(samples, fraction=1.0, seed=0, kinds=("near_duplicate",))
    assert len(noisy) == 8
    for before, copy in zip(noisy[::2], noisy[1::2], strict=True):
        assert len(copy.images) == 3
        assert all(image.name.endswith("-copy.jpg") for image in copy.images)
        pairs = zip(before.images, copy.images, strict=True)
        assert all(one.data != other.data for one, other in pairs)
    documents = list(SAMPLE_SOURCES.build({"name": "scene_documents", "num": 2})())
    assert [one.turns for one in add_noise(documents, fraction=0, seed=0)] == [
        one.turns for one in documents
    ]
    with pytest.raises(RecipeError, match=r"is a document.*noise_fraction=0"):
        add_noise(documents, fraction=0.5, seed=0)
