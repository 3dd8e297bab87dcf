"""Referring expressions: the box of what a text names, right if it overlaps enough."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from consomme.base.bounds import PositiveFloat, PositiveInt
from consomme.base.checked import rule
from consomme.evaluate.benchmark import (
    BENCHMARKS,
    BenchmarkItem,
    accuracy_by_kind,
    accuracy_figures,
    mean,
)
from consomme.evaluate.from_files import AskedRow, FileBenchmark, prompt_problems
from consomme.evaluate.question_files import QuestionRow
from consomme.evaluate.thoughts import without_thoughts
from consomme.vision.boxes import FractionBox, box_in, is_outside, overlap
from consomme.vision.decode import DecodeProblem, upright_size

_BOXES = ("bbox", "box", "answer", "solution")


@BENCHMARKS.register("grounding")
@dataclass(frozen=True, kw_only=True)
class Grounding(FileBenchmark):
    """Texts that name something in an image, and its box (RefCOCO, RefCOCO+, RefCOCOg)."""

    prompt: str = "Give the bounding box of: {question}"
    """What is asked. Models were tuned on prompts of their own; take the one of the model."""

    answer_scale: PositiveFloat | Literal["pixels"] = 1000.0
    """What the right and the lower edge are in answers: 1000 (Qwen2-VL, InternVL), 999 (VILA²'s
    specialist), 100, 1 (LLaVA), or `pixels` of the image as it is in the file. Qwen2.5-VL writes
    pixels of the image that its processor made, which can be told only if nothing is resized."""

    box_scale: PositiveFloat | Literal["pixels"] = "pixels"
    """The same in the file."""

    box_is: Literal["corners", "size"] = "corners"
    """Whether a box in the file is left, top, right, bottom; or left, top, width, height (COCO)."""

    min_iou: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Intersection over union from which on an answer is right."""

    max_tokens: PositiveInt = 64
    """Maximum answer length in tokens."""

    @rule
    def _prompt_holds_parts(self) -> Iterator[str]:
        yield from prompt_problems(self.prompt, ("question",), ())

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the text and its box."""
        if len(row.images) != 1:
            raise ValueError(f"it has {len(row.images)} images, expected 1")
        box = self._box(row)
        return AskedRow(
            row=row,
            text=self._text(row, "question"),
            truths=(" ".join(f"{edge:.4f}" for edge in box),),
            category=self._category(row),
        )

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each text."""
        return self._prompted(self.prompt)

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the boxes overlap enough."""
        return [float(value >= self.min_iou) for value, _ in self._overlaps(answers)]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy with its interval, mean overlap, and answers without a box.

        Boxes beyond the image (`num_answers_outside`) say that `answer_scale` is another one.
        """
        prepared = self.prepared
        bad = [0.0] * len(prepared.problems)
        found = self._overlaps(answers)
        right = [float(value >= self.min_iou) for value, _ in found]
        figures = accuracy_figures([*right, *bad])
        figures["iou_fraction"] = mean([*(value for value, _ in found), *bad])
        figures["num_unreadable_rows"] = float(len(bad))
        boxes = [box for _, box in found]
        figures["num_answers_none"] = float(boxes.count(None))
        figures["num_answers_outside"] = float(sum(b is not None and is_outside(b) for b in boxes))
        categories = [question.category for question in prepared.questions]
        if any(categories):
            figures |= accuracy_by_kind(right, categories)
        return figures

    def _overlaps(self, answers: Sequence[str]) -> list[tuple[float, FractionBox | None]]:
        """Return for each answer how much it overlaps, and its box."""
        found = []
        for answer, question in zip(answers, self.prepared.questions, strict=True):
            scale = self._scale(self.answer_scale, question.row)
            box = box_in(without_thoughts(answer), scale)
            found.append((overlap(box, self._box(question.row)) if box else 0.0, box))
        return found

    def _scale(
        self, scale: float | Literal["pixels"], row: QuestionRow
    ) -> float | tuple[float, float]:
        if not isinstance(scale, str):
            return scale
        size = upright_size(row.images[0])
        # The reader of the file decoded the image.
        assert not isinstance(size, DecodeProblem), size
        return size

    def _box(self, row: QuestionRow) -> FractionBox:
        names = (self.columns["answer"],) if "answer" in self.columns else _BOXES
        value: Any = next((row.cells[name] for name in names if name in row.cells), None)
        if value is None:
            raise ValueError(f"it has no box: none of the columns {', '.join(names)}")
        numbers = [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", str(value))]
        if len(numbers) != 4:
            raise ValueError(f"found {str(value)[:60]!r} as its box, expected four numbers")
        if self.box_is == "size":
            numbers[2:] = [numbers[0] + numbers[2], numbers[1] + numbers[3]]
        box = box_in(" ".join(f"{one:f}" for one in numbers), self._scale(self.box_scale, row))
        if box is None:
            raise ValueError(f"found the box {numbers}, expected one with an area")
        if is_outside(box):
            raise ValueError(
                f"found the box {numbers}, which reaches beyond the image; box_scale is"
                f" {self.box_scale} and box_is is {self.box_is}"
            )
        return box
