"""Judges of text: has it grammar errors, and can its questions be answered without the picture?

One decision is made here: judges are asked for likelihoods, not for text. How likely "yes" is
against "no" costs one short pass instead of a generation, cannot come out as something else, and
leaves the threshold to the filter. Judges only label; nothing is dropped here.

Source: POINTS1.5, section on data filtering. There a large language model finds grammar errors, and
samples that have some are dropped, which was better than letting the model mend them; about 85 % of
the data stays. Samples whose questions it answers without the picture were dropped too, on data
sets with fixed answers; that made the model slightly worse, so the paper keeps them, and a filter
should use this label for study rather than for cutting.

A judge has to be large. SmolLM2-135M-Instruct does not tell 20 faulty sentences from the same 20
without faults (area under the curve 0.48); of questions it answers 5 of 10 on general knowledge
among 15 wrong answers, and 2 of 10 about pictures that nobody has seen.
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
)

# Shapes: A answers.

TEXT = "{text}"


@TAGGERS.register("grammar")
@dataclass(frozen=True, kw_only=True)
class Grammar(Checked):
    """How likely a language model finds it that a text has grammar errors.

    The text is all that is said in a sample, questions too, a line for each turn. Source: POINTS1.5
    drops what has errors; about 85 % stays.
    """

    model: str
    """The judge: the folder of a language model, or of a VLM, which is shown no picture."""

    prompt: str = (
        "Does the following text contain grammar or spelling errors? Answer yes or no.\n\n{text}"
    )
    """What it is asked; `{text}` stands for the text."""

    yes: str = "yes"
    """The answer that means errors."""

    no: str = "no"
    """The answer that means none."""

    column: str = "grammar_error"
    """Name of the column: P(yes) / (P(yes) + P(no)), in [0, 1]."""

    needs_pictures: ClassVar[bool] = False
    data_version: ClassVar[str] = ""

    @rule
    def _prompt_has_place_for_text(self) -> Iterator[str]:
        if TEXT not in self.prompt:
            yield f"prompt: expected {TEXT} where the text goes; found {self.prompt!r}"

    @rule
    def _answers_differ(self) -> Iterator[str]:
        if self.yes.strip() == self.no.strip():
            yield f"yes and no: found {self.yes!r} for both, expected two answers"

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """One probability."""
        return {self.column: pa.float32()}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the judge."""
        model = open_model(self.model)
        return lambda inputs: self._tag(model, inputs)

    def _tag(self, model: TaggerModel, inputs: Sequence[TaggerInput]) -> TagColumns:
        texts = ["\n".join(t.content for t in s.sample.turns) for s in inputs]
        found = model.answer_nlls(
            [
                ChoiceQuestion(
                    question=self.prompt.replace(TEXT, text), answers=(self.yes, self.no)
                )
                for text in texts
            ]
        )
        problems = {k: p for k, nll_A in enumerate(found) if (p := _problem(nll_A)) is not None}
        values = [
            None if k in problems or isinstance(nll_A, TagProblem) else float(softmax(-nll_A)[0])
            for k, nll_A in enumerate(found)
        ]
        return TagColumns(columns={self.column: values}, problems=problems)


@TAGGERS.register("answerable")
@dataclass(frozen=True, kw_only=True)
class Answerable(Checked):
    """Whether a language model finds the true answers without the picture, among wrong ones.

    For data with short, fixed answers. A question counts as answered if no wrong answer is likelier
    than the true one; a sample with several questions is answerable if all of them are, each asked
    by itself. Source: POINTS1.5, which found that dropping such samples makes a model slightly
    worse: a label, to be used with care.
    """

    model: str
    """The judge: the folder of a language model, or of a VLM, which is shown no picture."""

    answers: tuple[str, ...] = ()
    """Answers that are common in the data, such as [yes, no] or [A, B, C, D]. Wrong ones are drawn
    from here, by the sample's id: what else is in the data makes no difference."""

    options: str | None = None
    """Key of `meta` with a sample's own list of answers to choose from; goes before `answers`."""

    num_wrong: PositiveInt = 15
    """Most wrong answers per question, for those drawn from `answers`."""

    seed: int = 0
    """Seed that is mixed with each sample's id."""

    needs_pictures: ClassVar[bool] = False
    data_version: ClassVar[str] = ""

    @rule
    def _has_wrong_answers(self) -> Iterator[str]:
        if self.options is None and len({_plain(answer) for answer in self.answers}) < 2:
            yield (
                "answers: expected at least two different ones, to draw wrong answers from, or"
                f" options: a key of meta with each sample's own; found {list(self.answers)}"
            )

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return whether all questions are answered, and how well the one that is answered worst.

        All three are null for a sample without a question, or without any wrong answer.
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
        asked = [(k, c) for k, item in enumerate(inputs) for c in self._choices(item.sample)]
        found = model.answer_nlls([choice for _, choice in asked])
        ranks: dict[int, list[int]] = {}
        probs: dict[int, list[float]] = {}
        problems: dict[int, TagProblem] = {}
        for (k, _), nll_A in zip(asked, found, strict=True):
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

    def _choices(self, sample: Sample) -> list[ChoiceQuestion]:
        """Make a choice of each question: the true answer, then wrong ones."""
        found = []
        for number, (question, answer) in enumerate(questions(sample)):
            wrong = self._own(sample, answer) or self._drawn(
                f"{number}\t{sample.sample_id}", answer
            )
            if wrong:
                found.append(ChoiceQuestion(question=question, answers=[answer, *wrong]))
        return found

    def _own(self, sample: Sample, answer: str) -> list[str]:
        given = sample.meta.get(self.options) if self.options is not None else None
        if not isinstance(given, list | tuple):
            return []
        return _others([str(option) for option in given], answer)

    def _drawn(self, name: str, answer: str) -> list[str]:
        wrong = _others(self.answers, answer)
        if len(wrong) <= self.num_wrong:
            return wrong
        lots = hash_ids(f"{self.seed}\t{option}\t{name}" for option in wrong)
        return [wrong[k] for k in np.argsort(lots, kind="stable")[: self.num_wrong]]


def questions(sample: Sample) -> list[tuple[str, str]]:
    """List what users ask in a sample, each with the answer that follows."""
    return [
        (asked.content, said.content)
        for asked, said in zip(sample.turns, sample.turns[1:], strict=False)
        if asked.role == "user" and said.role == "assistant"
    ]


def _others(options: Sequence[str], answer: str) -> list[str]:
    """Leave out the true answer, repetitions and empty ones."""
    different: dict[str, str] = {}
    for option in options:
        different.setdefault(_plain(option), option)
    return [o for plain, o in different.items() if plain not in ("", _plain(answer))]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _problem(nll_A: NDArray[np.float64] | TagProblem) -> TagProblem | None:
    if isinstance(nll_A, TagProblem):
        return nll_A
    if not np.isfinite(nll_A).all():
        return TagProblem(reason="score_not_finite", detail=f"the judge's nats: {nll_A.tolist()}")
    return None
