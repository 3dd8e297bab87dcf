"""LLM judges of text: does it have grammar errors, can its questions be answered without the image?

A judge is asked for likelihoods, not for text. The probability of "yes" against "no" costs one
short forward pass instead of a generation, cannot give a malformed answer, and leaves the threshold
to the filter. Judges only label; nothing is dropped here.

Source: POINTS1.5, section on data filtering. There a large language model finds samples with
grammar errors, which are dropped; that was better than letting the model correct them. About 85 %
of the data is kept. Samples whose questions it answers without the picture were dropped as well, on
data sets with fixed answers; that made the model slightly worse, so the paper keeps them, and this
label is for analysis rather than for filtering.

A judge has to be large. SmolLM2-135M-Instruct cannot separate 20 faulty sentences from their
corrected versions (AUC 0.48). Among 15 wrong answers each, it answers 5 of 10 questions on general
knowledge, and 2 of 10 about pictures that it was not shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.hashing import hash_ids
from consomme.base.sample import Sample
from consomme.base.schema import located
from consomme.curate.caption.prompts import placeholder_problems
from consomme.curate.tag.tagger import (
    TAGGERS,
    ChoiceQuestion,
    ModelOpener,
    TagColumns,
    TagFunction,
    TaggerInput,
    TaggerModel,
    TagProblem,
    softmax,
    text_of,
)

# Shapes: A answers.

TEXT = "{text}"


@TAGGERS.register("grammar")
@dataclass(frozen=True, kw_only=True)
class Grammar(Checked):
    """Probability, according to a language model, that a text has grammar errors.

    The text is that of all user and assistant turns, questions included, one line per turn; what
    a system or a tool says is not judged. Source: POINTS1.5 drops samples with errors and keeps
    about 85 %.
    """

    model: str = located()
    """The judge, by folder or name: a language model, or a VLM, which is shown no picture."""

    prompt: str = (
        "Does the following text contain grammar or spelling errors? Answer yes or no.\n\n{text}"
    )
    """The question; `{text}` is replaced by the text."""

    yes: str = "yes"
    """The answer that means errors."""

    no: str = "no"
    """The answer that means no errors."""

    column: str = "grammar_error"
    """Name of the column: P(yes) / (P(yes) + P(no)), in [0, 1]."""

    needs_pictures: ClassVar[bool] = False
    data_version: ClassVar[str] = ""

    @rule
    def _prompt_has_place_for_text(self) -> Iterator[str]:
        if TEXT not in self.prompt:
            yield f"prompt: expected {TEXT} where the text goes; found {self.prompt!r}"
        yield from placeholder_problems(self.prompt, ("text",), "prompt")

    @rule
    def _answers_differ(self) -> Iterator[str]:
        if self.yes.strip() == self.no.strip():
            yield f"yes and no: found {self.yes!r} for both, expected two answers"

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return one probability."""
        return {self.column: pa.float32()}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the judge."""
        model = open_model(self.model)
        return lambda inputs: self._tag(model, inputs)

    def _tag(self, model: TaggerModel, inputs: Sequence[TaggerInput]) -> TagColumns:
        texts = [
            "\n".join(text_of(t) for t in s.sample.turns if t.role in ("user", "assistant"))
            for s in inputs
        ]
        nlls = model.answer_nlls(
            [
                ChoiceQuestion(
                    question=self.prompt.replace(TEXT, text), answers=(self.yes, self.no)
                )
                for text in texts
            ]
        )
        problems = {k: p for k, nll_A in enumerate(nlls) if (p := _problem(nll_A)) is not None}
        values = [
            None if k in problems or isinstance(nll_A, TagProblem) else float(softmax(-nll_A)[0])
            for k, nll_A in enumerate(nlls)
        ]
        return TagColumns(columns={self.column: values}, problems=problems)


@TAGGERS.register("answerable")
@dataclass(frozen=True, kw_only=True)
class Answerable(Checked):
    """Whether a language model chooses the true answers without the picture, among wrong ones.

    For data with short, fixed answers. A question counts as answered if no wrong answer is more
    likely than the true one; a sample with several questions is answerable if all of them are, each
    asked separately. Answers that are not learned are not asked for. A sample without pictures has
    no label: there is nothing to do without. Source: POINTS1.5, which found that dropping such
    samples makes a model slightly worse, so use the label with care.
    """

    model: str = located()
    """The judge, by folder or name: a language model, or a VLM, which is shown no picture."""

    answers: tuple[str, ...] = ()
    """Answers that are common in the data, such as [yes, no] or [A, B, C, D]. Wrong answers are
    drawn from here by the sample's id, independently of other samples."""

    options: str | None = None
    """Key of `meta` with a sample's own list of possible answers; precedes `answers`."""

    num_wrong: PositiveInt = 15
    """Maximum number of wrong answers per question that are drawn from `answers`."""

    seed: int = 0
    """Seed of the draw, combined with each sample's id."""

    needs_pictures: ClassVar[bool] = False
    data_version: ClassVar[str] = ""

    @rule
    def _has_wrong_answers(self) -> Iterator[str]:
        if self.options is None and len({_normalise_answer(answer) for answer in self.answers}) < 2:
            yield (
                "answers: expected at least two different ones, to draw wrong answers from, or"
                f" options: a key of meta with each sample's own; found {list(self.answers)}"
            )

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return whether all questions are answered, and rank and probability of the worst answer.

        All three are null for a sample without pictures, a question or a wrong answer.
        """
        return {
            "answerable": pa.int8(),
            "answer_rank": pa.int32(),
            "answer_prob": pa.float32(),
        }

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the judge."""
        model = open_model(self.model)
        return lambda inputs: self._tag(model, inputs)

    def _tag(self, model: TaggerModel, inputs: Sequence[TaggerInput]) -> TagColumns:
        questions = [
            (k, question)
            for k, item in enumerate(inputs)
            if item.sample.images
            for question in self._questions(item.sample)
        ]
        nlls = model.answer_nlls([question for _, question in questions])
        ranks: dict[int, list[int]] = {}
        probs: dict[int, list[float]] = {}
        problems: dict[int, TagProblem] = {}
        for (k, _), nll_A in zip(questions, nlls, strict=True):
            problem = _problem(nll_A)
            if problem is not None:
                problems.setdefault(k, problem)
            elif not isinstance(nll_A, TagProblem):
                # The true answer is the first.
                ranks.setdefault(k, []).append(1 + int((nll_A < nll_A[0]).sum()))
                probs.setdefault(k, []).append(float(softmax(-nll_A)[0]))
        worst = [max(ranks[k]) if k in ranks else None for k in range(len(inputs))]
        columns: dict[str, Sequence[Any]] = {
            "answerable": [None if rank is None else int(rank == 1) for rank in worst],
            "answer_rank": worst,
            "answer_prob": [min(probs[k]) if k in probs else None for k in range(len(inputs))],
        }
        return TagColumns(columns=columns, problems=problems)

    def _questions(self, sample: Sample) -> list[ChoiceQuestion]:
        """Return each question with its answers: the true one, then wrong ones."""
        multiple_choice = []
        for number, (question, answer) in enumerate(question_answer_pairs(sample)):
            wrong = self._own_options(sample, answer) or self._sample_wrong(
                f"{number}\t{sample.sample_id}", answer
            )
            if wrong:
                multiple_choice.append(ChoiceQuestion(question=question, answers=[answer, *wrong]))
        return multiple_choice

    def _own_options(self, sample: Sample, answer: str) -> list[str]:
        own_options = sample.meta.get(self.options) if self.options is not None else None
        if not isinstance(own_options, list | tuple):
            return []
        return _wrong_options([str(option) for option in own_options], answer)

    def _sample_wrong(self, name: str, answer: str) -> list[str]:
        wrong = _wrong_options(self.answers, answer)
        if len(wrong) <= self.num_wrong:
            return wrong
        sort_keys = hash_ids(f"{self.seed}\t{option}\t{name}" for option in wrong)
        return [wrong[k] for k in np.argsort(sort_keys, kind="stable")[: self.num_wrong]]


def question_answer_pairs(sample: Sample) -> list[tuple[str, str]]:
    """Return the user turns of a sample, each with the labelled assistant turn that follows."""
    return [
        (text_of(question), text_of(answer))
        for question, answer in zip(sample.turns, sample.turns[1:], strict=False)
        if question.role == "user" and answer.role == "assistant" and answer.is_labelled
    ]


def _wrong_options(options: Sequence[str], answer: str) -> list[str]:
    """Return the options without the true answer, repetitions and empty ones."""
    different: dict[str, str] = {}
    for option in options:
        different.setdefault(_normalise_answer(option), option)
    return [
        o
        for normalised, o in different.items()
        if normalised not in ("", _normalise_answer(answer))
    ]


def _normalise_answer(text: str) -> str:
    return " ".join(text.casefold().split())


def _problem(nll_A: NDArray[np.float64] | TagProblem) -> TagProblem | None:
    if isinstance(nll_A, TagProblem):
        return nll_A
    if not np.isfinite(nll_A).all():
        return TagProblem(reason="score_not_finite", detail=f"the judge's nats: {nll_A.tolist()}")
    return None
