"""Similarity and classifier taggers, run by their stages with small random models."""

from typing import Any

import numpy as np
import pytest
from tests.support import image_models
from tests.support.many_pictures import caption, picture, sample_of, says, text, three

from consomme.base.errors import RecipeError
from consomme.base.sample import Sample
from consomme.curate.tag.image_models import Classifier
from consomme.execution.stage import DecodedSample, Outcome
from consomme.pipelines.tag.recipe import TagRecipe
from consomme.pipelines.tag.stage import PictureTagStage
from consomme.vision.decode import decode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(image_models.dual_encoder(tmp_path_factory.mktemp("clip"), "clip"))


@pytest.fixture(scope="module")
def safety(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(image_models.classifier(tmp_path_factory.mktemp("safety")))


def tagged(samples: list[Sample], tagger: dict[str, Any]) -> dict[str, dict[str, Any]]:
    recipe = TagRecipe(name="t", inputs=("x",), taggers=(tagger,), dtype="float32")
    stage = PictureTagStage(recipe, {tagger["model"]: tagger["model"]})
    outcome: Outcome = stage.work(
        [
            DecodedSample(
                row=row, sample=sample, images=tuple(decode(i.data) for i in sample.images)
            )
            for row, sample in enumerate(samples)
        ]
    )
    assert outcome.rejects == []
    return {row["sample_id"]: row for row in outcome.table.to_pylist()}


def captioned(name: str, seed: int, said: str) -> Sample:
    return sample_of(name, (says(said),), picture(seed))


def of_each(rows: dict[str, dict[str, Any]], column: str) -> list[float]:
    return [rows[str(k)][column] for k in range(3)]


def test_similarity_of_samples_of_any_number_of_pictures(clip: str) -> None:
    several = three("three", 10, 11, 12)
    said = "\n".join(t.text for t in several.turns if t.role == "assistant")
    alone = [captioned(str(k), 10 + k, said) for k in range(3)]
    samples = [several, text("none"), *alone]
    node = {"name": "similarity", "model": clip}
    rows = tagged(samples, node)
    assert rows["none"]["similarity"] is rows["none"]["similarity_is_cut"] is None
    expected = of_each(rows, "similarity")
    assert np.ptp(expected) > 1e-4
    joins = {"mean": np.mean, "min": min, "max": max, "first": lambda values: values[0]}
    for images, join in joins.items():
        found = tagged([several], node | {"images": images})["three"]
        assert found["similarity"] == pytest.approx(join(expected), abs=1e-5), images


def test_a_text_that_is_cut_is_said(clip: str) -> None:
    node = {"name": "similarity", "model": clip, "column": "clip"}
    rows = tagged(
        [captioned("long", 1, "a cat on a dog " * 30), captioned("short", 1, "a cat")], node
    )
    assert {name: row["clip_is_cut"] for name, row in rows.items()} == {
        "long": True,
        "short": False,
    }


def test_classes_of_samples_of_any_number_of_pictures(safety: str) -> None:
    samples = [three("three", 10, 11, 12), text("none")]
    samples += [caption(str(k), 10 + k) for k in range(3)]
    node = {"name": "classifier", "model": safety, "labels": ["nsfw", "watermark"]}
    rows = tagged(samples, node)
    assert set(rows["none"]) == {"row", "sample_id", "label", "label_prob", "label_score"}
    assert rows["none"]["label"] is rows["none"]["label_score"] is None
    scores = of_each(rows, "label_score")
    assert np.ptp(scores) > 1e-4
    assert rows["three"]["label_score"] == pytest.approx(np.mean(scores), abs=1e-5)
    most = tagged(samples[:1], node | {"images": "max"})["three"]
    assert most["label_score"] == pytest.approx(max(scores), abs=1e-5)
    first = tagged(samples[:1], node | {"images": "first"})["three"]
    assert first["label"] == rows["0"]["label"]
    assert first["label_prob"] == pytest.approx(rows["0"]["label_prob"], abs=1e-5)


def test_labels_are_those_of_the_model(safety: str) -> None:
    with pytest.raises(RecipeError, match=r"found porn; expected labels of .*: safe, nsfw, water"):
        tagged([caption("a", 1)], {"name": "classifier", "model": safety, "labels": ["porn"]})
    with pytest.raises(RecipeError, match="found nsfw more than once"):
        Classifier(model=safety, labels=("nsfw", "nsfw"))
