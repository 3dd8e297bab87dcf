"""Tags of samples with no, one and several pictures, by a VLM that takes one at a time."""

from typing import Any

import numpy as np
import pytest
from tests.support.many_pictures import caption, mixed, three

from consomme.base.sample import Sample
from consomme.execution.stage import DecodedSample, Outcome, UnitSample
from consomme.pipelines.tag.recipe import TagRecipe
from consomme.pipelines.tag.stage import PictureTagStage, TextTagStage
from consomme.storage.model_folder import model_folder
from consomme.vision.decode import decode

pytestmark = pytest.mark.slow

NANO = "package://models/nano"
EMBEDDING = {"name": "embedding", "model": NANO}
CLASSES = {
    "name": "classes",
    "model": NANO,
    "question": "how many objects are there?",
    "classes": ["one", "two", "three"],
}
JUDGES = (
    {"name": "grammar", "model": NANO},
    {"name": "answerable", "model": NANO, "answers": ["red", "blue", "in the second of them"]},
)
TEXT = ({"name": "text"}, {"name": "layout"}, {"name": "objects"})


def decoded(samples: list[Sample]) -> list[DecodedSample]:
    return [
        DecodedSample(
            row=row, sample=sample, images=tuple(decode(image.data) for image in sample.images)
        )
        for row, sample in enumerate(samples)
    ]


def tagged(samples: list[Sample], *taggers: dict[str, Any]) -> Outcome:
    recipe = TagRecipe(name="t", inputs=("x",), taggers=taggers, dtype="float32")
    return PictureTagStage(recipe, {NANO: model_folder(NANO)}).work(decoded(samples))


def by_name(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in outcome.table.to_pylist()}


def test_a_value_per_sample_and_none_for_texts_without_pictures() -> None:
    samples = mixed()
    outcome = tagged(samples, EMBEDDING, CLASSES, *JUDGES, *TEXT)
    assert outcome.rejects == []
    rows = by_name(outcome)
    assert len(rows) == len(samples)
    of_pictures = ["embedding", "class", "class_probs", "class_entropy", "answerable"]
    for name, row in rows.items():
        is_text = name.startswith("text")
        assert [row[column] is None for column in of_pictures[:4]] == [is_text] * 4, name
        assert (row["answerable"] is None) == (is_text or row["layout"] in ("caption", "document"))
        assert 0 <= row["grammar_error"] <= 1
        assert row["num_words"] > 0
    assert outcome.counts["class/"] == 4
    assert outcome.counts["layout/document"] == 4
    # The pictures of a sample are asked about one by one, as those of captions are.
    alone = by_name(tagged([caption(str(k), 10 + k) for k in range(3)], EMBEDDING, CLASSES))
    probs = np.mean([alone[str(k)]["class_probs"] for k in range(3)], axis=0)
    np.testing.assert_allclose(rows["three-0"]["class_probs"], probs, atol=1e-4)
    mean = np.mean([alone[str(k)]["embedding"] for k in range(3)], axis=0)
    np.testing.assert_allclose(rows["three-0"]["embedding"], mean / np.linalg.norm(mean), atol=1e-4)


def test_the_first_picture_or_each_or_all() -> None:
    samples = [three("three", 10, 11, 12), caption("one", 10)]
    first = by_name(tagged(samples, EMBEDDING | {"images": "first"}, CLASSES | {"images": "first"}))
    np.testing.assert_allclose(first["three"]["class_probs"], first["one"]["class_probs"])
    np.testing.assert_allclose(first["three"]["embedding"], first["one"]["embedding"])
    each = by_name(tagged(samples, EMBEDDING | {"images": "each"}))
    assert [len(row["embedding"]) for row in each.values()] == [3, 1]
    np.testing.assert_allclose(each["three"]["embedding"][0], first["one"]["embedding"])
    every = by_name(tagged(samples, CLASSES | {"images": "all"}))
    # In a batch with other rows, the last bits differ.
    np.testing.assert_allclose(every["one"]["class_probs"], first["one"]["class_probs"], rtol=1e-5)
    together = np.abs(np.subtract(every["three"]["class_probs"], first["three"]["class_probs"]))
    assert together.max() > 1e-3, "all three pictures are shown"


def test_text_taggers_look_at_no_picture() -> None:
    recipe = TagRecipe(name="t", inputs=("x",), taggers=TEXT)
    items = [UnitSample(row=row, sample=sample) for row, sample in enumerate(mixed())]
    rows = by_name(TextTagStage(recipe, {}).work(items))
    assert {row["num_images"] for row in rows.values()} == {0, 1, 2, 3}
    assert {row["layout"] for row in rows.values()} == {
        *("text", "caption", "conversation", "document")
    }
    assert rows["document-0"]["num_words"] == 23
