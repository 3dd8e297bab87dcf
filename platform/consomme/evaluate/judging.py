"""Let another model read answers that no rule reads, or say how right they are.

A judge is asked in texts alone, after all models have answered. An answer and what its judge wrote
then travel as one text; a benchmark that has a judge refuses answers that were not shown to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.errors import DataError
from consomme.base.schema import located, strategy
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem, accuracy_figures
from consomme.evaluate.engine_rules import DEFAULT_ENGINE, dtype_problems
from consomme.evaluate.from_files import AskedRow, FileBenchmark, prompt_problems
from consomme.evaluate.question_files import QuestionRow
from consomme.evaluate.thoughts import without_thoughts

CHOICE_PROMPT = (
    "Below are a question, its options, and what somebody answered. Which option does the answer"
    " choose? Judge by the answer alone, not by which option is right.\n\n"
    "Question: {question}\nOptions:\n{options}\nAnswer: {answer}\n\n"
    "Reply with the letter of that option and nothing else, or with NONE if it chooses none of"
    " them, or several."
)
"""Asks which option a free answer means."""

EXTRACT_PROMPT = (
    "Below are a question and a long answer to it. Which short answer does it come to? Copy it as"
    " it stands there, a number or a few words, and do not correct it.\n\n"
    "Question: {question}\nLong answer: {answer}\n\nReply with the short answer and nothing else."
)
"""Asks for the short answer in a long one."""

SCORE_PROMPT = (
    "Below are a question, its right answer, and what somebody answered. How right is that, from"
    " 0.0, wholly wrong, to 1.0, wholly right? If the right answer has parts joined by <AND>, each"
    " of them counts for its share; of those joined by <OR>, any one is enough. Words do not"
    " matter, only what is meant.\n\n"
    "Question: What is in the bowl? Right answer: an apple <AND> a pear. Answer: I see an apple."
    " Score: 0.5\n"
    "Question: How many are red? Right answer: 3 <OR> three. Answer: There are three red ones."
    " Score: 1.0\n"
    "Question: Who is taller? Right answer: the left one. Answer: The man on the right. Score: 0.0"
    "\n\nQuestion: {question} Right answer: {truth}. Answer: {answer} Score:"
)
"""Asks how right an answer is; the idea is that of MM-Vet, arXiv 2308.02490."""


@dataclass(frozen=True, kw_only=True)
class Judge(Checked):
    """A model that reads the answers of other models."""

    model: str = located()
    """Model: a folder, a run, a URL, `org/name[@revision]` on the hub; for the engine `openai`, the
    model's name at the endpoint."""

    engine: dict[str, Any] = strategy(
        "consomme.engines.generation.registry:GENERATION_ENGINES", default=DEFAULT_ENGINE
    )
    """What runs it; see consomme/engines/generation/registry.py."""

    prompt: str = ""
    """What it is asked, with `{question}`, `{answer}`, and where they are known `{options}` or
    `{truth}`; empty: the prompt of consomme/evaluate/judging.py for what it has to say."""

    max_tokens: PositiveInt = 64
    """Maximum length of what it writes, in tokens."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of its chat template."""

    @rule
    def _named_dtype(self) -> Iterator[str]:
        yield from dtype_problems(self.engine, "engine")


@runtime_checkable
class HasJudge(Protocol):
    """A kind of benchmark that may have a judge."""

    judge: Judge | None

    def to_judge(self, answers: Sequence[str]) -> dict[int, str]:
        """Return what the judge is asked about some of the answers, by their numbers."""


def with_reply(answer: str, reply: str | None) -> str:
    """Return an answer with what the judge wrote about it; None if it was not asked."""
    return json.dumps({"answer": answer, "reply": reply}, ensure_ascii=False)


def split_reply(text: str, judge: Judge | None) -> tuple[str, str | None]:
    """Return the answer, and what the judge wrote about it.

    Args:
        text: Of `with_reply`, if the benchmark has a judge; else an answer.
        judge: Of the benchmark.

    Raises:
        DataError: It has a judge, and the answer was not shown to it.
    """
    # What has no answer has nothing to be judged.
    if judge is None or not text:
        return text, None
    try:
        found = json.loads(text)
        return found["answer"], found["reply"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            "found answers that no judge has seen, to questions with a judge; only evaluate asks"
            " judges, so leave judge out here"
        ) from error


_NUMBER = r"[*_`\"']*(\d+(?:\.\d+)?)(?!\.?\d|\s*%|\s*(?:/|out of)\s*(?!1(?:\.0+)?(?!\.?\d))\d)"
_SCORES = (
    re.compile(rf"[^\w-]*(?:score|correctness)?[^\w-]*{_NUMBER}", re.IGNORECASE),
    re.compile(rf"\bscore\b[^\w-]*(?:is|of|would be)?[^\w-]*{_NUMBER}", re.IGNORECASE),
)


def read_score(reply: str) -> float | None:
    """Read a score from 0 to 1: a number that comes first, or after the word score; else None."""
    text = without_thoughts(reply)
    found = _SCORES[0].match(text) or _SCORES[1].search(text)
    score = float(found[1]) if found else -1.0
    return score if 0 <= score <= 1 else None


def judged_figures(
    answers: Sequence[str], judge: Judge | None, *, is_score: bool = False
) -> dict[str, float]:
    """Count what the judge was asked about, and scores that could not be read.

    Args:
        answers: As `split_reply` takes them.
        judge: Of the benchmark; without one, there is nothing to count.
        is_score: Whether its replies are scores.
    """
    if judge is None:
        return {}
    replies = [reply for text in answers if (reply := split_reply(text, judge)[1]) is not None]
    figures = {"num_judged": float(len(replies))}
    if is_score:
        figures["num_judge_unread"] = float(sum(read_score(reply) is None for reply in replies))
    return figures


def judge_problems(prompt: str, needed: Sequence[str], possible: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the places of a judge's prompt."""
    for problem in prompt_problems(prompt, needed, possible):
        yield f"judge.{problem}"


@BENCHMARKS.register("prompts")
@dataclass(frozen=True, kw_only=True)
class Prompts(FileBenchmark):
    """Texts that are put to a model as they stand, such as those that judges are asked.

    Nothing is known about what is right; the answers are kept in the run.
    """

    max_tokens: PositiveInt = 64
    """Maximum answer length in tokens."""

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the text."""
        return AskedRow(row=row, text=self._text(row, "question"), truths=("",))

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each text."""
        return self._prompted("{question}")

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where there is any answer."""
        return [float(bool(answer.strip())) for answer in answers]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Share of texts that are answered at all."""
        figures = accuracy_figures(self.verdicts(answers))
        return {
            "answered_fraction": figures["accuracy_fraction"],
            "num_questions": figures["num_questions"],
        }


def judge_node(judge: Judge, file: str, label: str) -> Mapping[str, Any]:
    """Return the node of a benchmark that puts a file of prompts to a judge."""
    return {"name": "prompts", "file": file, "label": label, "max_tokens": judge.max_tokens}
