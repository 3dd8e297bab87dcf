"""Captions, compared with those that people wrote, or with their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.base.schema import added
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem, accuracy_by_kind, mean
from consomme.evaluate.caption_metrics import CIDER_LARGEST, bleu_4, cider_d
from consomme.evaluate.clip_score import SCALE, ClipScore, ToCompare, clip_figures, split_cosines
from consomme.evaluate.from_files import AskedRow, FileBenchmark
from consomme.evaluate.metrics import interval_of_mean
from consomme.evaluate.question_files import QuestionRow, as_list
from consomme.evaluate.thoughts import without_thoughts

_CAPTIONS = ("captions", "caption", "references", "sentences", "answers", "answer")


@BENCHMARKS.register("caption")
@dataclass(frozen=True, kw_only=True)
class CaptionReferences(FileBenchmark):
    """Images to be captioned, each with captions by people (COCO, NoCaps, Flickr30k, TextCaps).

    Rows of one image, as tables with a caption per row have them, are separate questions: put the
    captions of an image into a list. `metric: clip_score` needs no captions by people.
    """

    metric: Literal["cider", "bleu_4", "clip_score"] = "cider"
    """The main figure; the others are given too, as far as they are known."""

    clip_score: ClipScore | None = added(None)
    """A dual encoder such as CLIP, which compares captions with their images; None: there is no
    CLIP score."""

    prompt: str = "Describe the image in one sentence."
    """What is asked."""

    max_tokens: PositiveInt = 64
    """Maximum length of a caption in tokens."""

    @rule
    def _has_encoder(self) -> Iterator[str]:
        if self.metric == "clip_score" and self.clip_score is None:
            yield "clip_score: found none; metric clip_score expects {model: a dual encoder}"

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the captions."""
        names = (self.columns["answer"],) if "answer" in self.columns else _CAPTIONS
        value = next((row.cells[name] for name in names if name in row.cells), None)
        if value is None and self.metric != "clip_score":
            raise ValueError(f"it has no caption: none of the columns {', '.join(names)}")
        truths = () if value is None else tuple(text for text in as_list(value) if text)
        if not truths and self.metric != "clip_score":
            raise ValueError("it has an empty list of captions")
        if not truths and self.shots:
            raise ValueError("it has no caption that could be shown as an example")
        if not row.images:
            raise ValueError("it has no image")
        return AskedRow(row=row, text=self.prompt, truths=truths, category=self._category(row))

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each image."""
        return self._prompted(self.prompt)

    def shown_shot(self, question: AskedRow) -> tuple[str, str]:
        """Return the prompt, and the first caption."""
        return self.prompt, question.truths[0]

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """CIDEr-D of each caption as a share of its largest value, or its cosine."""
        if self.metric == "clip_score":
            found = (split_cosines(text, self.clip_score)[1] for text in answers)
            return [min(max(one.image, 0.0), 1.0) if one else 0.0 for one in found]
        return [value / CIDER_LARGEST for value in self._cider(answers)]

    def to_compare(self, answers: Sequence[str]) -> dict[int, ToCompare]:
        """Return captions with their images; a control's with those that it did not show."""
        questions = self.prepared.questions
        return {
            number: ToCompare(images=asked.row.images, caption=said, references=asked.truths)
            for number, (text, asked) in enumerate(zip(answers, questions, strict=True))
            if (said := without_thoughts(text))
        }

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Every known metric, the main one first; 1.0 of CIDEr-D is what others write as 100."""
        prepared = self.prepared
        num_asked = len(prepared.questions) + len(prepared.problems)
        said = self._said(answers)
        by_name: dict[str, float] = {}
        intervals: dict[str, float] = {}
        # Without captions by people there is nothing else to compare with.
        if all(question.truths for question in prepared.questions):
            by_name, intervals = self._by_people(answers, said)
        if self.clip_score is not None:
            compared = [split_cosines(text, self.clip_score)[1] for text in answers]
            by_name |= clip_figures(compared, num_asked)
        figures: dict[str, float] = {self.metric: by_name.pop(self.metric)}
        figures |= by_name | intervals
        figures["num_questions"] = float(num_asked)
        figures["num_unreadable_rows"] = float(len(prepared.problems))
        figures["num_answers_empty"] = float(said.count(""))
        return figures | self._by_category(answers)

    def _by_people(
        self, answers: Sequence[str], said: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return figures by captions of people, and the interval of the first one."""
        prepared = self.prepared
        bad = len(prepared.problems)
        truths = [question.truths for question in prepared.questions]
        cider = [*self._cider(answers), *([0.0] * bad)]
        low, high = interval_of_mean(cider)
        # A row that cannot be asked counts as one whose caption is missing.
        bleu = bleu_4([*said, *([""] * bad)], [*truths, *([truths[0]] * bad)])
        figures = {"cider": mean(cider), "bleu_4": bleu}
        return figures, {"cider_low": low, "cider_high": high}

    def _by_category(self, answers: Sequence[str]) -> dict[str, float]:
        categories = [question.category for question in self.prepared.questions]
        if not any(categories):
            return {}
        is_clip = self.metric == "clip_score"
        scores = self.verdicts(answers) if is_clip else self._cider(answers)
        by_kind = accuracy_by_kind([SCALE * one if is_clip else one for one in scores], categories)
        name = "clip_score_" if is_clip else "cider_"
        return {
            figure.removesuffix("_fraction").replace("accuracy_", name, 1): value
            for figure, value in by_kind.items()
        }

    def _said(self, answers: Sequence[str]) -> list[str]:
        return [without_thoughts(split_cosines(text, self.clip_score)[0]) for text in answers]

    def _cider(self, answers: Sequence[str]) -> list[float]:
        return cider_d(
            self._said(answers), [question.truths for question in self.prepared.questions]
        )
