"""Contrastive region guidance as an option: how strong, what is masked, where the boxes are from.

Models are guided by comparing what they say of a picture with what they say of it without a region.
Only the engine transformers can do it: the logits of both are needed at each token.

Source: CRG, arXiv 2403.02325. Its largest gain, 11.1 points, is that of LLaVA-1.6-34B on ViP-Bench;
with LLaVA-1.5-13B the same guidance lowers that benchmark's relation and language scores (50.5 to
46.1, 40.5 to 32.6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import Interval

from consomme.base.bounds import Fraction, PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.recipe import strategy_identity
from consomme.base.registry import Registry
from consomme.base.schema import located, strategy
from consomme.storage.model_folder import model_hash, portable_path
from consomme.vision.masking import Area, Mask


class BoxSource(Protocol):
    """Where boxes come from; `consomme.engines.regions` finds them."""

    kind: ClassVar[str]
    """What is needed to find them."""


BOX_SOURCES: Registry[BoxSource] = Registry("source of boxes", "consomme/vision/guidance.py")


@BOX_SOURCES.register("data")
@dataclass(frozen=True, kw_only=True)
class DataBoxes(Checked):
    """Boxes that stand beside each sample or question; those of scenes are known.

    A box is four numbers, or a mapping with `box` (or `bbox`) and maybe `segmentation`, polygons as
    COCO has them. With several images, there is a list for each of them.
    """

    kind: ClassVar[str] = "data"

    column: str = "boxes"
    """Column of the file, or key of the samples' metadata. Where it is empty, nothing is masked and
    the model is not guided; both are counted."""

    scale: PositiveFloat | Literal["pixels"] = "pixels"
    """What the right and the lower edge are: 1000, 1, or `pixels` of the upright image."""

    box_is: Literal["corners", "size"] = "corners"
    """Whether a box is left, top, right, bottom; or left, top, width, height (COCO)."""


@BOX_SOURCES.register("scenes")
@dataclass(frozen=True, kw_only=True)
class SceneBoxes:
    """Boxes of what a text names in rendered scenes of `prepare`, by their metadata.

    Samples of another kind have none.
    """

    kind: ClassVar[str] = "scenes"


@BOX_SOURCES.register("detector")
@dataclass(frozen=True, kw_only=True)
class Detector(Checked):
    """Boxes that an object detector finds: those of things that the text names.

    Any detector of transformers, with labels of its own (DETR, YOLOS, RT-DETR) or asked in words
    (Grounding DINO, OWL-ViT, OWLv2).
    """

    kind: ClassVar[str] = "detector"

    model: str = located()
    """The detector, by folder or name (AutoModelForObjectDetection, or
    AutoModelForZeroShotObjectDetection)."""

    labels: tuple[str, ...] = ()
    """What to look for. None: of a detector with labels, those that the text names; one that is
    asked in words is asked for the text itself."""

    named_only: bool = True
    """Of `labels`, look only for those that the text names."""

    min_score: Fraction = 0.3
    """Least score of a box."""

    max_boxes: PositiveInt = 8
    """Most boxes of an image, those of the highest score."""


@BOX_SOURCES.register("model")
@dataclass(frozen=True, kw_only=True)
class OwnBoxes(Checked):
    """Boxes that the guided model itself writes when it is asked for them, without guidance."""

    kind: ClassVar[str] = "model"

    prompt: str = "Give the bounding box of each object in: {text}"
    """What it is asked about each image. Models were tuned on prompts of their own."""

    scale: PositiveFloat | Literal["pixels"] = 1000.0
    """What the right and the lower edge are in its answers, as `answer_scale` of grounding."""

    max_boxes: PositiveInt = 8
    """Most boxes of an image, the first ones."""

    max_tokens: PositiveInt = 128
    """Maximum length of its answer, in tokens."""

    @rule
    def _prompt_holds_text(self) -> Iterator[str]:
        if "{text}" not in self.prompt:
            yield f"prompt: found no {{text}} in {self.prompt[:80]!r}"


@dataclass(frozen=True, kw_only=True)
class Guidance(Checked):
    """How a model is guided by regions: the next token is that of (1 + alpha) a - alpha b.

    Here a are the logits given the images, b those given the images with masked regions.
    """

    alpha: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Strength; the paper has 1, and 0 is the model as it is, bit for bit."""

    boxes: dict[str, Any] = strategy(
        "consomme.vision.guidance:BOX_SOURCES", default={"name": "data"}
    )
    """Where the regions are from: `data`, `detector`, the `model` itself, or `scenes`."""

    mask: Mask = "blackout"
    """What becomes of their pixels before any model prepares the image: black, as in the paper, or
    `blur`."""

    area: Area = "boxes"
    """Which pixels: those of all `boxes`, as in the paper; or its ablations: of the `hull` around
    them, of the `first` box only, of the whole `image`, or of outlines that came with the boxes
    (`segments`)."""

    @rule
    def _outlines_are_data(self) -> Iterator[str]:
        if self.area == "segments" and self.boxes.get("name") not in ("data", "scenes"):
            yield (
                f"area: found segments, but boxes of {self.boxes.get('name')} have no outlines;"
                " take them from data, or area: boxes"
            )

    def source(self) -> BoxSource:
        """Build the source of boxes."""
        return BOX_SOURCES.build(self.boxes, "guidance.boxes")

    def identity(self) -> dict[str, Any]:
        """Return what decides the regions and the guidance, a detector by its content."""
        values = dataclasses.asdict(self)
        values["boxes"] = strategy_identity(BOX_SOURCES, self.boxes)
        if "model" in self.boxes:
            values["boxes"]["model"] = model_hash(str(self.boxes["model"]), generates=False)
        return values


def portable_guidance(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a guidance's node with a detector that another process finds."""
    boxes = node.get("boxes")
    if not isinstance(boxes, Mapping) or "model" not in boxes:
        return dict(node)
    return {**node, "boxes": {**boxes, "model": portable_path(str(boxes["model"]))}}


def with_portable_models(guidance: Guidance | None) -> Guidance | None:
    """Return a guidance whose detector another process finds."""
    if guidance is None:
        return None
    found = portable_guidance({"boxes": guidance.boxes})
    return dataclasses.replace(guidance, boxes=found["boxes"])


def guidance_inputs(guidance: Guidance | None, key: str) -> dict[str, str]:
    """Return the contents of the models that find boxes, as inputs of a run."""
    if guidance is None or "model" not in guidance.boxes:
        return {}
    marks = model_hash(str(guidance.boxes["model"]), generates=False)
    return {f"{key}.boxes.model": marks}


def no_logits_problems(
    guidance: Guidance | Mapping[str, Any] | None, engine: str, where: str
) -> Iterator[str]:
    """Yield why an engine cannot be guided."""
    if guidance is not None and engine != "transformers":
        yield (
            f"{where}: needs the logits of two branches at each token, which the engine {engine}"
            " does not give; use {name: transformers}, or leave guidance out"
        )
