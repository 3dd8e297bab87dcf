"""Benchmarks from files whose answers are short texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.base.schema import added
from consomme.base.suggest import did_you_mean
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem, accuracy_by_kind, mean
from consomme.evaluate.from_files import AskedRow, FileBenchmark, filled, prompt_problems
from consomme.evaluate.judging import (
    EXTRACT_PROMPT,
    SCORE_PROMPT,
    Judge,
    judge_problems,
    judged_figures,
    read_score,
    split_reply,
)
from consomme.evaluate.metrics import interval_of_mean
from consomme.evaluate.open_answers import METRICS
from consomme.evaluate.open_answers import judge as score_of
from consomme.evaluate.question_files import QuestionRow, as_list
from consomme.evaluate.thoughts import without_thoughts

SHORT_WORDS = 3
"""An open answer of so many words needs no judge to find the short answer in it."""


@BENCHMARKS.register("open")
@dataclass(frozen=True, kw_only=True)
class OpenAnswers(FileBenchmark):
    """Questions whose answers are short texts, judged by a metric of their benchmark."""

    metric: str = "exact"
    """How right an answer is, from 0 to 1: `exact`, `vqa`, `anls`, `relaxed`, `number`, `contains`,
    `contains_formula`, or one that a module of yours registers; see
    `consomme.evaluate.open_answers`. With `judge`, the judge says so, as in MM-Vet."""

    prompt: str = "{hint}{question}\nAnswer the question using a single word or phrase."
    """What is asked."""

    max_tokens: PositiveInt = 32
    """Maximum answer length in tokens."""

    judge: Judge | None = added(None)
    """The model that says how right an answer is, if that is the metric; for other metrics, the one
    that finds the short answer in answers of more than three words, as MathVista has it."""

    @rule
    def _known_metric(self) -> Iterator[str]:
        known = (*METRICS, "judge")
        if self.metric not in known:
            hint = did_you_mean(self.metric, known)
            yield f"metric: unknown {self.metric!r}{hint or '; expected one of '}" + (
                "" if hint else ", ".join(known)
            )

    @rule
    def _judge_for_its_metric(self) -> Iterator[str]:
        is_score = self.metric == "judge"
        if is_score and not self.judge:
            yield "metric: found judge, but no judge; name its model, judge: {model: …}"
        if self.judge and self.judge.prompt:
            needed = ("question", "answer", *(("truth",) if is_score else ()))
            yield from judge_problems(self.judge.prompt, needed, ())

    @rule
    def _prompt_holds_parts(self) -> Iterator[str]:
        yield from prompt_problems(self.prompt, ("question",), ("hint",))

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read question and answers."""
        self._text(row, "answer")
        truths = tuple(text for text in as_list(self._cell(row, "answer")) if text)
        if not truths:
            raise ValueError("it has an empty list of answers")
        return AskedRow(
            row=row,
            text=self._text(row, "question"),
            truths=truths,
            category=self._category(row),
        )

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each question."""
        return self._prompted(self.prompt)

    def shown_shot(self, question: AskedRow) -> tuple[str, str]:
        """Return the question, and the answer that most annotators gave."""
        ((answer, _),) = Counter(question.truths).most_common(1)
        return self._filled(self.prompt, question), answer

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """How right each answer is."""
        scores = []
        for text, question in zip(answers, self.prepared.questions, strict=True):
            answer, reply = split_reply(text, self.judge)
            if self.metric == "judge":
                scores.append((read_score(reply) or 0.0) if reply is not None else 0.0)
            else:
                said = answer if reply is None else reply
                scores.append(score_of(self.metric, said, question.truths))
        return scores

    def to_judge(self, answers: Sequence[str]) -> dict[int, str]:
        """Return what the judge is asked about answers, or about long ones."""
        assert self.judge is not None
        is_score = self.metric == "judge"
        prompt = self.judge.prompt or (SCORE_PROMPT if is_score else EXTRACT_PROMPT)
        return {
            number: filled(
                prompt, question=question.text, truth=" <OR> ".join(question.truths), answer=said
            )
            for number, (answer, question) in enumerate(
                zip(answers, self.prepared.questions, strict=True)
            )
            # Which are asked about does not depend on what is right, or scores would be too good.
            if (said := without_thoughts(answer)) and (is_score or len(said.split()) > SHORT_WORDS)
        }

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Mean of the metric, with its interval, overall and by category."""
        prepared = self.prepared
        scores = self.verdicts(answers)
        whole = [*scores, *([0.0] * len(prepared.problems))]
        low, high = interval_of_mean(whole)
        figures = {
            f"{self.metric}_fraction": mean(whole),
            f"{self.metric}_low_fraction": low,
            f"{self.metric}_high_fraction": high,
            "num_questions": float(len(whole)),
            "num_unreadable_rows": float(len(prepared.problems)),
        } | judged_figures(answers, self.judge, is_score=self.metric == "judge")
        categories = [question.category for question in prepared.questions]
        by_kind = accuracy_by_kind(scores, categories) if any(categories) else {}
        return figures | {
            name.replace("accuracy_", f"{self.metric}_", 1): value
            for name, value in by_kind.items()
        }
