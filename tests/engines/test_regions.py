"""Regions come from data, from any object detector of transformers, or from the model itself."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.image_models import tokenizer
from tests.support.zoo_images import noise

from consomme.base.errors import CheckpointError, RecipeError
from consomme.base.schema import parse
from consomme.datasets.scenes import make_scene, render
from consomme.engines.contrast import Contrast
from consomme.engines.detection import is_named, open_detector
from consomme.engines.generation.requests import Generation, Request
from consomme.engines.regions import RegionProblem, RegionQuestion, find_contrasts, open_finder
from consomme.models.imports import import_transformers
from consomme.vision.guidance import Detector, Guidance
from consomme.vision.masking import Area, masked

hf = import_transformers()
IMAGE = Image.new("RGB", (40, 20), "white")


def guidance(**values: Any) -> Guidance:
    built, problems = parse(Guidance, values)
    assert not problems, problems
    return built


def no_writer() -> Any:
    raise AssertionError("nothing is written")


def contrast_of(found: Guidance, question: RegionQuestion) -> Any:
    (one,) = find_contrasts(found, open_finder(found, no_writer), [question])
    return one


def masked_pixels(contrast: Contrast, index: int = 0) -> int:
    return int((np.asarray(contrast.images[index]) == 0).all(axis=2).sum())


def asked(meta: dict[str, Any], *images: Image.Image, text: str = "") -> RegionQuestion:
    return RegionQuestion(images=images or (IMAGE,), text=text, meta=meta)


def test_boxes_of_data() -> None:
    one = contrast_of(guidance(alpha=0.5), asked({"boxes": [[0, 0, 4, 5]]}))
    assert one.alpha == 0.5
    assert masked_pixels(one) == 20
    scaled = guidance(boxes={"name": "data", "column": "b", "scale": 1000, "box_is": "size"})
    assert masked_pixels(contrast_of(scaled, asked({"b": [[0, 0, 500, 500]]}))) == 20 * 10
    two = contrast_of(guidance(), asked({"boxes": [[], [[0, 0, 2, 2]]]}, IMAGE, IMAGE.copy()))
    assert two.images[0] is IMAGE
    assert masked_pixels(two, 1) == 4


def test_without_boxes_or_strength_nothing_is_masked() -> None:
    for meta in ({}, {"boxes": None}, {"boxes": []}, {"boxes": [[50, 0, 60, 5]]}):
        found = contrast_of(guidance(), asked(meta))
        # The last one lies beyond the image.
        assert found is None or isinstance(found, RegionProblem)
    assert contrast_of(guidance(alpha=0), asked({"boxes": [[0, 0, 4, 5]]})) is None


def test_boxes_that_cannot_be_read_cost_their_sample() -> None:
    for boxes in ([[4, 0, 0, 5]], "text", [[0, 0, 4000, 5]], {"x": 1}):
        found = contrast_of(guidance(), asked({"boxes": boxes}))
        assert isinstance(found, RegionProblem)
        assert found.reason == "region_unreadable"
        assert "boxes" in found.detail
    found = contrast_of(guidance(area="segments"), asked({"boxes": [[0, 0, 4, 5]]}))
    assert isinstance(found, RegionProblem)
    assert "no outline" in found.detail


@pytest.mark.parametrize("area", ["boxes", "hull", "first", "image", "segments"])
def test_scenes_know_their_regions(area: Area) -> None:
    seed = next(s for s in range(99) if len({o.shape for o in make_scene(s).objects}) == 2)
    scene = make_scene(seed)
    image = render(scene)
    first = scene.objects[0]
    found = guidance(boxes={"name": "scenes"}, area=area)
    one = contrast_of(
        found, asked({"scene_seed": seed, "style": "filled"}, image, text=f"the {first.shape}?")
    )
    changed = (np.asarray(one.images[0]) != np.asarray(image)).any(axis=2)
    left, top, right, bottom = first.box_px
    inside = np.zeros_like(changed)
    inside[top:bottom, left:right] = True
    if area != "image":
        assert not changed[~inside].any()
    assert changed[inside].any()
    assert contrast_of(found, asked({}, image)) is None


class Writer:
    """Writes given answers, one after the other."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.requests = list(texts), []

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.requests += requests
        return [
            Generation(text=self.texts.pop(0), num_tokens=1, finish_reason="stop") for _ in requests
        ]


def test_boxes_of_the_model_itself() -> None:
    found = guidance(boxes={"name": "model", "prompt": "where? {text}", "max_boxes": 1})
    writer = Writer("[0, 0, 500, 500], [0, 0, 1000, 1000]", "nothing")
    questions = [asked({}, text="a star"), asked({}, text="a {text}")]
    one, none = find_contrasts(found, open_finder(found, lambda: writer), questions)
    assert masked_pixels(one) == 20 * 10
    assert none is None
    assert [each.turns[0].text for each in writer.requests] == ["where? a star", "where? a {text}"]
    assert all(each.contrast is None for each in writer.requests)


def small_detr(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=[32, 32], patch_size=8, num_detection_tokens=5,
        id2label={0: "dog", 1: "traffic light", 2: "berry"},
        label2id={"dog": 0, "traffic light": 1, "berry": 2},
    )  # fmt: skip
    hf.YolosForObjectDetection(config).save_pretrained(folder)
    hf.YolosImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def small_owl(folder: Path) -> Path:
    torch.manual_seed(0)
    small = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    words = tokenizer(12)
    config = hf.OwlViTConfig(
        text_config={
            **small, "vocab_size": len(words), "max_position_embeddings": 12,
            "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": len(words) - 1,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    hf.OwlViTForObjectDetection(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    pixels = hf.OwlViTImageProcessorPil(size=size, do_center_crop=False)
    hf.OwlViTProcessor(image_processor=pixels, tokenizer=words).save_pretrained(folder)
    return folder


def plain(detector: Any, image: Image.Image, label: int | None, **inputs: Any) -> list[Any]:
    """Boxes by transformers alone."""
    given = detector.processor(images=image, return_tensors="pt", **inputs)
    with torch.no_grad():
        output = detector.model(**given)
    sizes = [(image.height, image.width)]
    if label is None:
        (found,) = detector.processor.post_process_grounded_object_detection(
            output, threshold=0.0, target_sizes=sizes
        )
    else:
        (found,) = detector.processor.post_process_object_detection(
            output, threshold=0.0, target_sizes=sizes
        )
    rows = [
        (float(score), tuple(box))
        for score, kind, box in zip(
            found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True
        )
        if label is None or kind == label
    ]
    return [box for _, box in sorted(rows, key=lambda row: -row[0])]


@pytest.mark.slow
def test_a_detector_with_labels_finds_what_the_text_names(tmp_path: Path) -> None:
    folder = small_detr(tmp_path)
    image = noise(1, 24).resize((64, 40))
    base = Detector(model=str(folder), min_score=0.0, max_boxes=100)
    detector = open_detector(base)
    found = {
        name: detector.detect([(image, text)])[0]
        for name, text in (
            ("dog", "two Dogs"),
            ("traffic light", "a traffic light"),
            ("berry", "berries"),
        )
    }
    assert sum(map(len, found.values())) >= 1
    for name, regions in found.items():
        expected = plain(detector, image, detector.known.index(name))
        assert len(regions) == len(expected)
        assert np.allclose([one.box for one in regions] or [0], expected or [0])
    assert detector.detect([(image, "a cat")]) == [[]]
    fixed = open_detector(replace(base, labels=("dog",), named_only=False))
    assert fixed.detect([(image, "a cat")])[0] == found["dog"]
    best = open_detector(replace(base, max_boxes=1))
    for text, name in (("dog", "dog"), ("berry", "berry")):
        assert best.detect([(image, text)])[0] == found[name][:1]
    with pytest.raises(RecipeError, match="dogs"):
        open_detector(replace(base, labels=("dogs",)))


@pytest.mark.slow
def test_a_detector_that_is_asked_in_words(tmp_path: Path) -> None:
    folder = small_owl(tmp_path)
    image = noise(2, 24).resize((64, 64))
    source = Detector(model=str(folder), min_score=0.0, max_boxes=100)
    detector = open_detector(source)
    (regions,) = detector.detect([(image, "a photo of a cat")])
    expected = plain(detector, image, None, text=[["a photo of a cat"]])
    assert len(regions) == len(expected)
    assert np.allclose([one.box for one in regions] or [0], expected or [0])
    labels = open_detector(replace(source, labels=("cat", "dog")))
    assert labels.queries("a dog") == ["dog"]
    assert len(labels.detect([(image, "a dog")])[0]) == len(regions)
    found = guidance(boxes={"name": "detector", "model": str(folder), "min_score": 0})
    one = contrast_of(found, asked({}, image, text="a red house"))
    shown = image if one is None else one.images[0]
    expected_image = masked(image, detector.detect([(image, "a red house")])[0][:8])
    assert np.array_equal(np.asarray(shown), np.asarray(expected_image))
    assert contrast_of(found, asked({}, image, text=" ")) is None


@pytest.mark.slow
def test_other_models_are_no_detectors(debug_vlm: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an object detector"):
        open_detector(Detector(model=str(debug_vlm)))


def test_labels_are_named_in_singular_and_plural() -> None:
    assert is_named("traffic light", "Two traffic lights.")
    assert is_named("box", "the boxes")
    assert is_named("berry", "some berries")
    assert is_named("key", "keys")
    assert not is_named("car", "a card, a carpet")
    assert not is_named("", "a car")
