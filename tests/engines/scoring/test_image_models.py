"""Dual encoders and image classifiers against plain transformers in float64, one at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support import image_models
from tests.support.zoo_images import noise

from consomme.base.errors import CheckpointError
from consomme.engines.scoring.image_models import ImageTextEmbedder, LabelClassifier
from consomme.models.image_models import open_dual_encoder, open_image_classifier
from consomme.models.imports import import_transformers
from consomme.storage.model_folder import model_folder

pytestmark = pytest.mark.slow

IMAGES = [noise(k, 24).resize(size) for k, size in enumerate(((96, 64), (33, 70), (200, 41)))]
TEXTS = ["a photo of a cat", "two", "red house on a blue tree with three dog", "", "the " * 40]


@pytest.mark.parametrize("kind", image_models.DUAL_ENCODERS)
def test_embeddings_are_those_of_the_plain_model(kind: str, tmp_path: Path) -> None:
    folder = str(image_models.dual_encoder(tmp_path, kind))
    embedder = ImageTextEmbedder(folder, "float32")
    images = embedder.embed_images(IMAGES)
    texts = embedder.embed_texts(TEXTS)
    assert [is_cut for _, is_cut in texts] == [False, False, False, False, True]
    model, processor = open_dual_encoder(folder, torch.float64)
    padding = {"padding": "max_length"} if "siglip" in kind else {}
    for image, ours in zip(IMAGES, images, strict=True):
        for text, (said, _) in zip(TEXTS, texts, strict=True):
            inputs = processor(
                text=[text], images=[image], return_tensors="pt", truncation=True, max_length=12,
                **padding,
            )  # fmt: skip
            inputs["pixel_values"] = inputs["pixel_values"].double()
            with torch.inference_mode():
                output = model(**inputs)
            expected = float((output.text_embeds @ output.image_embeds.T).squeeze())
            assert float(ours @ said) == pytest.approx(expected, abs=1e-4)
    # They differ, so that the comparison above can fail.
    assert np.ptp([float(one @ texts[0][0]) for one in images]) > 1e-3
    assert np.ptp([float(images[0] @ one) for one, _ in texts[:3]]) > 1e-3


@pytest.mark.parametrize("kind", ["vit", "siglip", "resnet"])
@pytest.mark.parametrize("is_multi", [False, True])
def test_probabilities_are_those_of_the_plain_model(
    kind: str, is_multi: bool, tmp_path: Path
) -> None:
    options = {"problem_type": "multi_label_classification"} if is_multi else {}
    folder = str(image_models.classifier(tmp_path, kind, **options))
    ours = LabelClassifier(folder, "float32")
    assert ours.labels == ("safe", "nsfw", "watermark")
    assert ours.is_multi_label == is_multi
    model, processor = open_image_classifier(folder, torch.float64)
    for image, found in zip(IMAGES, ours.probs(IMAGES), strict=True):
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"].double()
        with torch.inference_mode():
            logits = model(pixels).logits[0]
        expected = logits.sigmoid() if is_multi else logits.softmax(-1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_a_backbone_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = image_models.classifier(tmp_path, "vit")
    hf = import_transformers()
    hf.AutoModelForImageClassification.from_pretrained(folder).base_model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"classifier\.\w+ is missing .* would be random"):
        LabelClassifier(str(folder))


@pytest.mark.parametrize("options", [{"id2label": {0: "beauty"}}, {"problem_type": "regression"}])
def test_a_model_that_gives_no_probabilities_is_refused(
    options: dict[str, object], tmp_path: Path
) -> None:
    folder = image_models.classifier(tmp_path, "vit", **options)
    with pytest.raises(CheckpointError, match="expected a classifier with two labels or more"):
        LabelClassifier(str(folder))


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    nano = model_folder("package://models/nano")
    with pytest.raises(CheckpointError, match="expected one that embeds images and texts"):
        ImageTextEmbedder(nano)
    with pytest.raises(CheckpointError, match="expected an image classifier"):
        LabelClassifier(nano)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*config\.json"):
        ImageTextEmbedder(str(tmp_path))


class _MixesTexts(ImageTextEmbedder):
    """Pads on the left, as no family that is known here may be padded."""

    def encode(self, texts):
        self.tokenizer.padding_side = "left"
        return super().encode(texts)


def test_a_batch_that_changes_embeddings_is_refused(tmp_path: Path) -> None:
    folder = str(image_models.dual_encoder(tmp_path, "chinese_clip"))
    with pytest.raises(CheckpointError, match="the embedding of a text in a batch is"):
        _MixesTexts(folder)


def test_an_image_that_the_processor_refuses_costs_itself_only(tmp_path: Path) -> None:
    folder = str(image_models.classifier(tmp_path, "resnet"))
    images = [IMAGES[0], Image.new("RGB", (1, 4000)), IMAGES[1]]
    found = LabelClassifier(folder).probs(images)
    assert [type(one).__name__ for one in found] == ["ndarray", "ndarray", "ndarray"]
