"""Benchmarks from files that ask for likelihoods only: of given texts, and of captions in pairs.

The model writes nothing. An answer is the nll of each text in nats, as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from consomme.base.errors import DataError
from consomme.evaluate.benchmark import (
    BENCHMARKS,
    BenchmarkItem,
    accuracy_by_kind,
    accuracy_figures,
    mean,
)
from consomme.evaluate.from_files import AskedRow, FileBenchmark, filled
from consomme.evaluate.lazy import LazyItems
from consomme.evaluate.metrics import interval_of_mean
from consomme.evaluate.question_files import QuestionRow, as_list, text_of_cell
from consomme.vision.guidance import DataBoxes

_CAPTIONS = ("caption_0", "caption_1")
_TRUE = ("caption", "true_caption", "caption_correct", "positive_caption")
_FALSE = ("negative_caption", "false_caption", "caption_incorrect", "negative_captions")


@dataclass(frozen=True, kw_only=True)
class _ByLikelihood(FileBenchmark):
    """What benchmarks have in common whose answers are likelihoods."""

    max_tokens: ClassVar[int] = 0

    candidates_name_regions: ClassVar[bool] = True
    """Whether detectors look for what each candidate names, and not for what is asked."""

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return all likelihoods."""
        del number
        return json.dumps(nlls)


@BENCHMARKS.register("likelihood")
@dataclass(frozen=True, kw_only=True)
class Likelihood(_ByLikelihood):
    """How likely given answers are; or texts alone, to see what a VLM has lost of its language.

    Figures are by character, so that models with other tokenizers can be compared. The end of the
    answer's turn counts as a part of it.
    """

    prompt: str = "{hint}{question}"
    """What is asked; of rows without a question, nothing but `instead`."""

    instead: str = "Write a text."
    """What is asked where a row has no question."""

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read question and answer; a row may be a `text` alone."""
        if self._cell(row, "answer") is None and "text" in row.cells:
            return AskedRow(
                row=row,
                text=self.instead,
                truths=(text_of_cell(row.cells["text"]),),
                category=self._category(row),
            )
        asked = self._cell(row, "question")
        hint = self._text(row, "hint")
        text = filled(
            self.prompt,
            question=text_of_cell(asked) if asked is not None else self.instead,
            hint=f"{hint}\n" if hint else "",
        )
        return AskedRow(
            row=row,
            text=text,
            truths=(as_list(self._text(row, "answer"))[0],),
            category=self._category(row),
        )

    def shown_shot(self, question: AskedRow) -> tuple[str, str]:
        """Return what is asked, and the given answer."""
        return question.text, question.truths[0]

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each text."""
        questions = self.prepared.questions
        return LazyItems(
            len(questions), lambda number: self._item(questions[number], questions[number].text)
        )

    def candidates(self, number: int) -> Mapping[str, str]:
        """Return the given answer."""
        return {"nll": self.prepared.questions[number].truths[0]}

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """Probability per character: the geometric mean; 0 where the model cannot be asked."""
        return [
            math.exp(-json.loads(answer)["nll"] / len(question.truths[0])) if answer else 0.0
            for answer, question in zip(answers, self.prepared.questions, strict=True)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Probability per character over all texts, with the interval of the mean over rows."""
        prepared = self.prepared
        shares = [*self.verdicts(answers), *([0.0] * len(prepared.problems))]
        known = [
            (json.loads(answer)["nll"], len(question.truths[0]))
            for answer, question in zip(answers, prepared.questions, strict=True)
            if answer
        ]
        nats, characters = (sum(values) for values in zip(*known, strict=True)) if known else (0, 1)
        low, high = interval_of_mean(shares)
        figures = {
            "character_probability_fraction": mean(shares),
            "character_probability_low_fraction": low,
            "character_probability_high_fraction": high,
            "bits_per_character": nats / characters / math.log(2),
            "num_questions": float(len(shares)),
            "num_unreadable_rows": float(len(prepared.problems)),
            "num_answers_empty": float(list(answers).count("")),
        }
        categories = [question.category for question in prepared.questions]
        if not any(categories):
            return figures
        by_kind = accuracy_by_kind(self.verdicts(answers), categories)
        return figures | {
            name.replace("accuracy_", "character_probability_", 1): value
            for name, value in by_kind.items()
        }


@BENCHMARKS.register("pairs")
@dataclass(frozen=True, kw_only=True)
class Pairs(_ByLikelihood):
    """Captions that differ in little, of which the model has to find the true one more likely.

    A row with one image has a true caption and false ones: ARO (arXiv 2210.01936), SugarCrepe
    (2306.14610), What'sUp (2310.19785). One with two images has the caption of each, judged by the
    rules of Winoground (2204.03162): `text_score`, for each image its caption is more likely than
    the other; `image_score`, each caption is more likely with its image than with the other;
    `group_score`, both. Likelihoods are of whole captions; the images' prior is not taken off.
    """

    prompt: str = "Describe the image."
    """What is asked; captions are answers to it."""

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the captions, the true one first; of two images, in their order."""
        cells = row.cells
        if all(name in cells for name in _CAPTIONS):
            if len(row.images) != 2:
                raise ValueError(f"it has two captions and {len(row.images)} images, expected 2")
            captions = [text_of_cell(cells[name]) for name in _CAPTIONS]
        else:
            true = next((cells[name] for name in _TRUE if name in cells), None)
            false = next((cells[name] for name in _FALSE if name in cells), None)
            if true is None or false is None:
                raise ValueError(
                    f"it has no captions: expected {' and '.join(_CAPTIONS)}, or one of"
                    f" {', '.join(_TRUE)} and one of {', '.join(_FALSE)}"
                )
            if len(row.images) != 1:
                raise ValueError(f"it has {len(row.images)} images, expected 1")
            captions = [text_of_cell(true), *as_list(false)]
        if len(set(captions)) < max(2, len(captions)):
            raise ValueError("its captions are equal")
        options = {str(k): text for k, text in enumerate(captions)}
        return AskedRow(
            row=row,
            text=self.prompt,
            truths=(captions[0],),
            category=self._category(row),
            options=options,
        )

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each image."""
        asked = self._asked

        def make(number: int) -> BenchmarkItem:
            question, image = asked[number]
            row = self._row_of(question.row, image)
            truth = (question.options or {})[str(image)]
            return self._item(replace(question, row=row, truths=(truth,)), self.prompt)

        return LazyItems(len(asked), make)

    def _row_of(self, row: QuestionRow, image: int) -> QuestionRow:
        """Return a row with one of its images, and with the boxes of that image."""
        cells = dict(row.cells)
        boxes = self.guidance and self.guidance.source()
        if len(row.images) > 1 and isinstance(boxes, DataBoxes) and boxes.column in cells:
            value = cells[boxes.column]
            value = json.loads(value) if isinstance(value, str) else value
            if len(value) != len(row.images):
                raise DataError(
                    f"{self.file}: row {row.number}: {boxes.column}: found {len(value)} lists of"
                    f" boxes, expected one for each of {len(row.images)} images"
                )
            cells[boxes.column] = value[image]
        return replace(row, images=(row.images[image],), cells=cells)

    def candidates(self, number: int) -> Mapping[str, str]:
        """Return all captions of the row."""
        return self._asked[number][0].options or {}

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the true caption of an image is the most likely one."""
        found = []
        for answer, (_, image) in zip(answers, self._asked, strict=True):
            nlls = json.loads(answer) if answer else {}
            others = [nll for name, nll in nlls.items() if name != str(image)]
            found.append(float(bool(others) and nlls[str(image)] < min(others)))
        return found

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """1 where a row is right; with two images, by the group score."""
        return [row["group"] for row in self._scores(answers)]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, or the group score, with its interval, overall and by category."""
        prepared = self.prepared
        scores = self._scores(answers)
        right = [row["group"] for row in scores]
        bad = [0.0] * len(prepared.problems)
        figures = accuracy_figures([*right, *bad])
        figures["num_unreadable_rows"] = float(len(prepared.problems))
        figures["num_answers_empty"] = float(list(answers).count(""))
        categories = [question.category for question in prepared.questions]
        if any(categories):
            figures |= accuracy_by_kind(right, categories)
        # Of two images, 1 of 6 orders of the four likelihoods has the group right by chance.
        chances = [
            1 / 6 if len(question.row.images) == 2 else 1 / len(question.options or "x")
            for question in prepared.questions
        ]
        figures["chance_fraction"] = mean(chances)
        for name in ("text", "image", "group"):
            if any(len(question.row.images) == 2 for question in prepared.questions):
                found = [row[name] for row in scores if name in row]
                figures[f"{name}_score_fraction"] = mean([*found, *bad])
        return figures

    @cached_property
    def _asked(self) -> list[tuple[AskedRow, int]]:
        """Row and image of each request."""
        return [
            (question, image)
            for question in self.prepared.questions
            for image in range(len(question.row.images))
        ]

    def _scores(self, answers: Sequence[str]) -> list[dict[str, float]]:
        """Return the scores of each row."""
        scores = []
        given = iter([json.loads(answer) if answer else None for answer in answers])
        right = iter(self.verdicts(answers))
        for question in self.prepared.questions:
            number = len(question.row.images)
            nlls, verdicts = (
                [next(given) for _ in range(number)],
                [next(right) for _ in range(number)],
            )
            text = min(verdicts)
            if number == 1:
                scores.append({"group": text})
                continue
            first, second = nlls
            image = float(
                first is not None
                and second is not None
                and first["0"] < second["0"]
                and second["1"] < first["1"]
            )
            scores.append({"text": text, "image": image, "group": min(text, image)})
        return scores
