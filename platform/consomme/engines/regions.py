"""Find the regions that guide a model, and mask them: of data, of a detector, or of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from PIL import Image

from consomme.base.sample import Turn
from consomme.datasets.scene_regions import named_regions
from consomme.datasets.scenes import make_scene
from consomme.engines.contrast import Contrast
from consomme.engines.detection import open_detector
from consomme.engines.generation.requests import (
    Generation,
    GenerationEngine,
    GenerationFailure,
    Request,
)
from consomme.vision.boxes import Regions, boxes_in, in_pixels, read_regions
from consomme.vision.guidance import DataBoxes, Detector, Guidance, OwnBoxes, SceneBoxes
from consomme.vision.masking import Region, masked


@dataclass(frozen=True, kw_only=True)
class RegionQuestion:
    """What regions are looked for in."""

    images: tuple[Image.Image, ...] = field(repr=False)
    text: str
    """Names the things whose regions matter: a question, or a caption."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    """Of the sample; may hold boxes."""


@dataclass(frozen=True, kw_only=True)
class RegionProblem:
    """Why the regions of a sample cannot be known."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class RegionFinder(Protocol):
    """Finds the regions of each image."""

    def __call__(self, questions: Sequence[RegionQuestion]) -> list[Regions | RegionProblem]:
        """Return them, aligned with the questions."""


def open_finder(guidance: Guidance, open_writer: Callable[[], GenerationEngine]) -> RegionFinder:
    """Return what finds regions.

    Args:
        guidance: Names the source of boxes.
        open_writer: Opens the guided model, to write; called if it is asked for its own boxes.
    """
    source = guidance.source()
    if isinstance(source, Detector):
        return _DetectorFinder(source)
    if isinstance(source, OwnBoxes):
        return _ModelFinder(source, open_writer())
    if isinstance(source, SceneBoxes):
        return _find_in_scenes
    return _DataFinder(cast(DataBoxes, source))


def find_contrasts(
    guidance: Guidance, finder: RegionFinder, questions: Sequence[RegionQuestion]
) -> list[Contrast | RegionProblem | None]:
    """Mask the regions of each question's images; None where there is none, or nothing to do."""
    if not guidance.alpha:
        return [None] * len(questions)
    contrasts: list[Contrast | RegionProblem | None] = []
    for question, found in zip(questions, finder(questions), strict=True):
        if isinstance(found, RegionProblem):
            contrasts.append(found)
            continue
        try:
            images = tuple(
                masked(image, regions, mask=guidance.mask, area=guidance.area)
                for image, regions in zip(question.images, found, strict=True)
            )
        except ValueError as error:
            contrasts.append(RegionProblem(reason="region_unreadable", detail=str(error)))
            continue
        is_masked = any(a is not b for a, b in zip(images, question.images, strict=True))
        contrasts.append(Contrast(alpha=guidance.alpha, images=images) if is_masked else None)
    return contrasts


class _DataFinder:
    """Reads boxes beside samples."""

    def __init__(self, source: DataBoxes) -> None:
        self.source = source

    def __call__(self, questions: Sequence[RegionQuestion]) -> list[Regions | RegionProblem]:
        return [self._find(one) for one in questions]

    def _find(self, question: RegionQuestion) -> Regions | RegionProblem:
        sizes = [image.size for image in question.images]
        value = question.meta.get(self.source.column)
        try:
            return read_regions(value, sizes, self.source.scale, self.source.box_is)
        except (ValueError, TypeError) as error:
            detail = f"{self.source.column}: {error}"
            return RegionProblem(reason="region_unreadable", detail=detail)


def _find_in_scenes(questions: Sequence[RegionQuestion]) -> list[Regions | RegionProblem]:
    found: list[Regions | RegionProblem] = []
    for one in questions:
        regions: Regions = tuple(() for _ in one.images)
        if "scene_seed" in one.meta and len(one.images) == 1:
            scene = make_scene(int(one.meta["scene_seed"]), str(one.meta["style"]))
            regions = read_regions(named_regions(scene, one.text), [one.images[0].size])
        found.append(regions)
    return found


class _DetectorFinder:
    """Asks an object detector."""

    def __init__(self, source: Detector) -> None:
        self.source, self.detector = source, open_detector(source)

    def __call__(self, questions: Sequence[RegionQuestion]) -> list[Regions | RegionProblem]:
        pairs = [(image, one.text) for one in questions for image in one.images]
        results = iter(self.detector.detect(pairs))
        found: list[Regions | RegionProblem] = []
        for one in questions:
            boxes = [next(results) for _ in one.images]
            problem = next((each for each in boxes if isinstance(each, str)), None)
            if problem is not None:
                found.append(RegionProblem(reason="image_not_encodable", detail=problem))
                continue
            found.append(tuple(tuple(each) for each in boxes if not isinstance(each, str)))
        return found


class _ModelFinder:
    """Asks the model for boxes, and reads them."""

    def __init__(self, source: OwnBoxes, writer: GenerationEngine) -> None:
        self.source, self.writer = source, writer

    def __call__(self, questions: Sequence[RegionQuestion]) -> list[Regions | RegionProblem]:
        requests = [
            Request(
                turns=(Turn(role="user", content=self.source.prompt.replace("{text}", one.text)),),
                images=(image,),
                max_tokens=self.source.max_tokens,
            )
            for one in questions
            for image in one.images
        ]
        results = iter(self.writer.generate(requests))
        found: list[Regions | RegionProblem] = []
        for one in questions:
            answers = [next(results) for _ in one.images]
            failure = next((each for each in answers if isinstance(each, GenerationFailure)), None)
            if failure is not None:
                found.append(RegionProblem(reason=failure.reason, detail=failure.detail))
                continue
            texts = [each.text for each in answers if isinstance(each, Generation)]
            found.append(
                tuple(
                    self._regions(text, image)
                    for text, image in zip(texts, one.images, strict=True)
                )
            )
        return found

    def _regions(self, text: str, image: Image.Image) -> tuple[Region, ...]:
        scale = self.source.scale
        boxes = boxes_in(text, image.size if isinstance(scale, str) else scale)
        regions = [Region(box=in_pixels(box, image.size)) for box in boxes]
        return tuple(regions[: self.source.max_boxes])
