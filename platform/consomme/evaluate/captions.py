"""Captions, compared with those that people wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from consomme.base.bounds import PositiveInt
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem, accuracy_by_kind, mean
from consomme.evaluate.caption_metrics import CIDER_LARGEST, bleu_4, cider_d
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
    captions of an image into a list.
    """

    metric: Literal["cider", "bleu_4"] = "cider"
    """The main figure; both are given."""

    prompt: str = "Describe the image in one sentence."
    """What is asked."""

    max_tokens: PositiveInt = 64
    """Maximum length of a caption in tokens."""

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the captions."""
        names = (self.columns["answer"],) if "answer" in self.columns else _CAPTIONS
        value = next((row.cells[name] for name in names if name in row.cells), None)
        if value is None:
            raise ValueError(f"it has no caption: none of the columns {', '.join(names)}")
        truths = tuple(text for text in as_list(value) if text)
        if not truths:
            raise ValueError("it has an empty list of captions")
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
        """CIDEr-D of each caption as a share of its largest value."""
        return [value / CIDER_LARGEST for value in self._cider(answers)]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """CIDEr-D with its interval, and BLEU-4; 1.0 is what others write as 100."""
        prepared = self.prepared
        bad = len(prepared.problems)
        truths = [question.truths for question in prepared.questions]
        cider = [*self._cider(answers), *([0.0] * bad)]
        low, high = interval_of_mean(cider)
        by_name = {
            "cider": mean(cider),
            "bleu_4": bleu_4(
                [*map(without_thoughts, answers), *([""] * bad)],
                # A row that cannot be asked counts as one whose caption is missing.
                [*truths, *([truths[0]] * bad)],
            ),
        }
        figures: dict[str, float] = {self.metric: by_name.pop(self.metric)}
        figures |= by_name | {"cider_low": low, "cider_high": high}
        figures["num_questions"] = float(len(cider))
        figures["num_unreadable_rows"] = float(bad)
        figures["num_answers_empty"] = float(sum(not without_thoughts(a) for a in answers))
        categories = [question.category for question in prepared.questions]
        if any(categories):
            by_kind = accuracy_by_kind(cider[: len(categories)], categories)
            figures |= {
                name.removesuffix("_fraction").replace("accuracy_", "cider_", 1): value
                for name, value in by_kind.items()
            }
        return figures

    def _cider(self, answers: Sequence[str]) -> list[float]:
        said = [without_thoughts(answer) for answer in answers]
        return cider_d(said, [question.truths for question in self.prepared.questions])
