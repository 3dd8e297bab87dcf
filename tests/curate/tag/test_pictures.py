"""Pseudo-labels and embeddings, on likelihoods made by hand."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tests.curate.tag.cases import tagger_input

from consomme.base.errors import CheckpointError, RecipeError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.curate.tag.pictures import Classes, Embedding, entropy
from consomme.curate.tag.tagger import (
    ChoiceQuestion,
    TaggerInput,
    TaggerPicture,
    TagProblem,
    softmax,
)

COLORS = ("red", "light blue", "green")


class ByHand:
    """Knows the probability of each answer about each picture; b"" is what is said of none."""

    def __init__(self, probs: Mapping[bytes, Sequence[float]], *, has_vision: bool = True) -> None:
        self.probs, self.has_vision = probs, has_vision
        self.asked: list[bytes] = []

    def answer_nlls(self, choices: Sequence[ChoiceQuestion]) -> list:
        found: list = []
        for choice in choices:
            assert choice.question == "what color is it?"
            assert choice.answers == COLORS
            name = b"+".join(picture.data for picture in choice.pictures)
            self.asked.append(name)
            if name == b"bad":
                found.append(TagProblem(reason="sequence_too_long", detail="as long as it gets"))
                continue
            with np.errstate(divide="ignore"):
                found.append(-np.log(np.array(self.probs[name], np.float64)))
        return found

    def embed_pictures(self, pictures: Sequence[TaggerPicture]) -> list:
        return [np.array(self.probs[picture.data], np.float32) for picture in pictures]


def tagger(**changes) -> Classes:
    return Classes(model="m", question="what color is it?", classes=COLORS, **changes)


def test_classes_share_what_the_model_believes_of_them():
    model = ByHand({b"": (0.1, 0.2, 0.1), b"x": (0.3, 0.05, 0.15), b"y": (0.01, 0.3, 0.01)})
    inputs = [tagger_input("a", image=image) for image in (b"x", b"y", b"x")]
    found = tagger().open(lambda _: model)(inputs).columns
    assert list(found["class"]) == ["red", "light blue", "red"]
    np.testing.assert_allclose(found["class_probs"][0], [0.6, 0.1, 0.3])
    assert found["class_margin"][0] == pytest.approx(0.3)
    by_hand = -(0.6 * math.log(0.6) + 0.1 * math.log(0.1) + 0.3 * math.log(0.3))
    assert found["class_entropy"][0] == pytest.approx(by_hand)
    assert model.asked == [b"", b"x", b"y"], "each picture once, and once no picture"


def test_equal_priors_divide_by_what_is_said_without_a_picture():
    model = ByHand({b"": (0.6, 0.1, 0.1), b"x": (0.6, 0.3, 0.1)})
    found = tagger(prior="equal", column="hue").open(lambda _: model)(
        [tagger_input("a", image=b"x")]
    )
    assert found.columns["hue"] == ("light blue",)
    # 0.6 / 0.6, 0.3 / 0.1 and 0.1 / 0.1, divided by their sum.
    np.testing.assert_allclose(found.columns["hue_probs"][0], [0.2, 0.6, 0.2])
    own = tagger().open(lambda _: model)([tagger_input("a", image=b"x")]).columns
    assert own["class"] == ("red",)


def test_a_picture_that_cannot_be_asked_about_is_one_problem():
    model = ByHand({b"": (0.1, 0.2, 0.1), b"x": (0.3, 0.05, 0.15), b"nan": (math.nan, 0.1, 0.1)})
    inputs = [tagger_input("a", image=image) for image in (b"x", b"bad", b"nan")]
    found = tagger().open(lambda _: model)(inputs)
    assert {k: problem.reason for k, problem in found.problems.items()} == {
        1: "sequence_too_long",
        2: "score_not_finite",
    }
    assert "2 of 3 finite" in found.problems[2].detail
    assert found.columns["class"] == ("red", None, None)


def test_no_samples_give_empty_columns():
    model = ByHand({b"": (0.1, 0.2, 0.1)})
    some = tagger()
    found = some.open(lambda _: model)([]).columns
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(some.columns, 0)


def test_sure_and_unsure():
    assert entropy(np.array([1.0, 0.0])) == 0.0
    assert entropy(np.full(8, 0.125)) == pytest.approx(math.log(8))
    np.testing.assert_allclose(softmax(np.array([-1000.0, -1000.0])), [0.5, 0.5])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("red",), "found 1, expected at least two names"),
        (("red", "blue", "red "), "found red more than once; expected different names"),
        (("red", " "), "found an empty name"),
    ],
)
def test_wrong_classes_are_refused(classes, message):
    with pytest.raises(RecipeError, match=message):
        Classes(model="m", question="?", classes=classes)


def test_classes_that_the_model_cannot_say_are_refused():
    class Mute(ByHand):
        def answer_nlls(self, choices):
            return [TagProblem(reason="text_not_encodable", detail="answer '<s>': special")]

    with pytest.raises(RecipeError, match=r"m cannot be asked 'what color is it\?': answer '<s>'"):
        tagger().open(lambda _: Mute({}))


def test_models_without_eyes_are_refused():
    blind = ByHand({b"": (0.1, 0.2, 0.1)}, has_vision=False)
    for some in (tagger(), Embedding(model="m")):
        with pytest.raises(CheckpointError, match="'m' has no vision encoder"):
            some.open(lambda _: blind)


def test_an_embedding_that_is_not_finite_is_one_problem():
    model = ByHand({b"x": (0.6, 0.8), b"nan": (math.nan, 0.1)})
    inputs = [tagger_input("a", image=image) for image in (b"x", b"nan")]
    found = Embedding(model="m").open(lambda _: model)(inputs)
    np.testing.assert_allclose(found.columns["embedding"][0], [0.6, 0.8])
    assert {k: problem.reason for k, problem in found.problems.items()} == {1: "score_not_finite"}


def several(*images: bytes) -> TaggerInput:
    """A sample of these pictures, decoded; or of text alone."""
    files = tuple(ImageFile(data=data, name=f"{k}.png") for k, data in enumerate(images))
    sample = Sample(sample_id="a", images=files, turns=caption_turns("a"), source="s")
    return TaggerInput(sample=sample, images=tuple(Image.new("RGB", (1, 1)) for _ in images))


PROBS = {
    b"": (0.25, 0.25, 0.25),
    b"x": (0.6, 0.3, 0.1),
    b"y": (0.1, 0.2, 0.7),
    b"z": (0.5, 0.4, 0.1),
    b"x+y+z": (0.2, 0.7, 0.1),
}


@pytest.mark.parametrize(
    ("images", "asked", "expected"),
    [
        ("mean", [b"x", b"y", b"z"], [0.4, 0.3, 0.3]),
        ("first", [b"x"], [0.6, 0.3, 0.1]),
        ("all", [b"x+y+z"], [0.2, 0.7, 0.1]),
    ],
)
def test_a_sample_of_several_pictures_has_one_class(images, asked, expected):
    model = ByHand(PROBS)
    found = tagger(images=images).open(lambda _: model)([several(b"x", b"y", b"z"), several()])
    np.testing.assert_allclose(found.columns["class_probs"][0], expected)
    assert found.columns["class"] == (COLORS[int(np.argmax(expected))], None)
    assert found.columns["class_entropy"][0] == pytest.approx(entropy(np.array(expected)))
    assert [values[1] for values in found.columns.values()] == [None] * 4, "a text has no class"
    assert model.asked == [b"", *asked]
    assert found.problems == {}


def test_one_bad_picture_of_several_is_named():
    model = ByHand(PROBS)
    found = tagger().open(lambda _: model)([several(b"x", b"bad"), several(b"bad")])
    assert found.problems[0].detail == "picture 2 of 2: as long as it gets"
    assert found.problems[1].detail == "as long as it gets"


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("mean", np.array([1.4, 0.8]) / np.hypot(1.4, 0.8)),
        ("first", [0.6, 0.8]),
        ("each", [[0.6, 0.8], [0.8, 0.0]]),
    ],
)
def test_an_embedding_of_several_pictures(images, expected):
    model = ByHand({b"x": (0.6, 0.8), b"y": (0.8, 0.0)})
    made = Embedding(model="m", images=images)
    found = made.open(lambda _: model)([several(b"x", b"y"), several(), several(b"x")])
    np.testing.assert_allclose(found.columns["embedding"][0], expected, rtol=1e-6)
    assert found.columns["embedding"][1] is None
    alone = np.array((0.6, 0.8), np.float32)
    np.testing.assert_array_equal(
        found.columns["embedding"][2], [alone] if images == "each" else alone
    )
    pa.array(found.columns["embedding"], made.columns["embedding"])


def test_opposite_pictures_have_no_mean():
    model = ByHand({b"x": (0.6, 0.8), b"y": (-0.6, -0.8)})
    found = Embedding(model="m").open(lambda _: model)([several(b"x", b"y")])
    assert found.problems[0].reason == "score_not_finite"
