"""Run object detectors: boxes of the things that a text names, in one image at a time.

Detectors pad images of a batch, and some of their numbers depend on it, so there are no batches.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from consomme.base.errors import RecipeError
from consomme.models import selfcheck
from consomme.models.image_models import labels_of, open_object_detector
from consomme.storage.model_folder import model_folder
from consomme.vision.guidance import Detector
from consomme.vision.masking import Region


def open_detector(source: Detector) -> ObjectDetector:
    """Open the detector that a source of boxes names; once per process.

    Raises:
        CheckpointError: It is no object detector.
        RecipeError: It has no such label.
    """
    return ObjectDetector(source, *_opened(model_folder(source.model)))


@functools.lru_cache(2)
def _opened(folder: str) -> tuple[Any, Any, bool]:
    with selfcheck.family_faults(f"cannot open the detector at {folder}"):
        model, processor, has_words = open_object_detector(folder, torch.float32)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return model, processor, has_words


class ObjectDetector:
    """Finds boxes of things."""

    def __init__(self, source: Detector, model: Any, processor: Any, has_words: bool) -> None:
        """Check the labels.

        Args:
            source: What is looked for.
            model: An open detector.
            processor: Its processor.
            has_words: Whether it is asked in words.

        Raises:
            RecipeError: It has no such label.
        """
        self.source, self.model, self.processor, self.has_words = (
            source,
            model,
            processor,
            has_words,
        )
        self.known = () if has_words else labels_of(model)
        unknown = [name for name in source.labels if not has_words and name not in self.known]
        if unknown:
            raise RecipeError(
                f"guidance.boxes.labels: found {', '.join(unknown)}; expected labels of"
                f" {source.model}: {', '.join(self.known[:20])}"
                + (", …" if len(self.known) > 20 else "")
            )

    def detect(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[list[Region] | str]:
        """Return the regions of the things that a text names in its image, or why not.

        Those of the highest score come first.
        """
        return [self._detect(image.convert("RGB"), text) for image, text in pairs]

    def queries(self, text: str) -> list[str]:
        """Return what is looked for because of a text; nothing if it names nothing."""
        source = self.source
        if self.has_words and not source.labels:
            return [text] if text.strip() else []
        labels = source.labels or self.known
        is_by_name = source.named_only or not source.labels
        return [label for label in labels if not is_by_name or is_named(label, text)]

    def _detect(self, image: Image.Image, text: str) -> list[Region] | str:
        queries = self.queries(text)
        if not queries:
            return []
        try:
            found = self._found(image, queries)
        # Processors raise many types on images and texts that they do not take.
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            return f"the detector at {self.source.model} does not take it: {error}"
        order = sorted(range(len(found)), key=lambda k: -found[k][0])
        boxes = [found[k][1] for k in order[: self.source.max_boxes]]
        # Boxes of no area are found by models that were not trained.
        return [
            Region(box=(left, top, right, bottom))
            for left, top, right, bottom in boxes
            if left < right and top < bottom and all(map(math.isfinite, (left, top, right, bottom)))
        ]

    @torch.inference_mode()
    def _found(
        self, image: Image.Image, queries: Sequence[str]
    ) -> list[tuple[float, tuple[float, ...]]]:
        """Return score and box of each thing, in pixels."""
        size = [(image.height, image.width)]
        least = self.source.min_score
        if not self.has_words:
            inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
            (found,) = self.processor.post_process_object_detection(
                self.model(**inputs), threshold=least, target_sizes=size
            )
            wanted = {self.known.index(name) for name in queries}
            is_wanted = [int(label) in wanted for label in found["labels"]]
        else:
            kind = self.model.config.model_type
            # Grounding DINO takes one text of phrases that end with a period.
            is_one_text = "dino" in kind.replace("_", "-")
            asked: Any = (
                ". ".join(one.strip().rstrip(".").lower() for one in queries) + "."
                if is_one_text
                else [list(queries)]
            )
            inputs = self.processor(images=image, text=asked, return_tensors="pt", truncation=True)
            inputs = inputs.to(self.model.device)
            more = {} if is_one_text else {"text_labels": [list(queries)]}
            (found,) = self.processor.post_process_grounded_object_detection(
                self.model(**inputs), threshold=least, target_sizes=size, **more
            )
            is_wanted = [True] * len(found["scores"])
        return [
            (float(score), tuple(box))
            for score, box, is_one in zip(
                found["scores"].tolist(), found["boxes"].tolist(), is_wanted, strict=True
            )
            if is_one
        ]


def is_named(label: str, text: str) -> bool:
    """Whether a text names a label, in the singular or in a regular plural."""
    words = re.findall(r"[^\W\d_]+", label.casefold())
    if not words:
        return False
    name = r"[\s-]+".join(map(re.escape, words))
    ending = r"(?:s|es)?"
    if words[-1].endswith("y"):
        name, ending = name[:-1], r"(?:y|ys|ies)"
    return re.search(rf"\b{name}{ending}\b", text.casefold()) is not None
