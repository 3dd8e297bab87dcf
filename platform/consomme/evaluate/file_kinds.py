"""Benchmarks whose questions stand in a file: multiple choice, and yes or no.

Source of the prompts: those of LLaVA-1.5, arXiv 2310.03744, which most VLMs were tuned on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.base.schema import added
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem, mean
from consomme.evaluate.choices import FAILURES, ChoiceReading, read_choice
from consomme.evaluate.from_files import (
    LETTERS,
    AskedRow,
    FileBenchmark,
    filled,
    prompt_problems,
)
from consomme.evaluate.judging import (
    CHOICE_PROMPT,
    Judge,
    judge_problems,
    judged_figures,
    split_reply,
)
from consomme.evaluate.lazy import LazyItems
from consomme.evaluate.metrics import normalise
from consomme.evaluate.open_answers import judge as score_of
from consomme.evaluate.question_files import QuestionRow, as_list, text_of_cell
from consomme.evaluate.thoughts import without_thoughts
from consomme.evaluate.yes_no import group_accuracy, pope_figures, read_yes_no


@BENCHMARKS.register("multiple_choice")
@dataclass(frozen=True, kw_only=True)
class MultipleChoice(FileBenchmark):
    """Questions with options, of which the model writes the letter.

    Options are columns A to Z, of which some may be empty, or a list. The answer is a letter, the
    text of an option, or, beside a list, its number from 0. What an answer text chooses is read by
    the rules of `consomme.evaluate.choices`.
    """

    prompt: str = (
        "{hint}{question}\n{options}\n"
        "Answer with the option's letter from the given choices directly."
    )
    """What is asked; `{hint}` ends with a line break if there is a hint."""

    answer_by: Literal["generation", "letter_likelihood", "text_likelihood"] = "generation"
    """What decides: the answer that the model writes; or, without writing, which letter is its most
    likely answer; or which option's text is, by nats per character, as in the `acc_norm` of
    language model evaluations. The end of the answer's turn counts as a part of it."""

    circular: bool = False
    """Ask once for each rotation of the options; a question is right only if all its rotations are,
    as in MMBench, arXiv 2307.06281."""

    max_tokens: PositiveInt = 16
    """Maximum answer length in tokens. A model that thinks before it answers needs many more."""

    judge: Judge | None = added(None)
    """A model that reads which option an answer chooses, where the rules read none; None: such an
    answer is wrong."""

    open_prompt: str | None = added(None)
    """What rows without options are asked, as MMMU has some: right is an answer that equals a right
    one, or ends with the same number. None: such rows cannot be asked."""

    @rule
    def _judges_what_is_written(self) -> Iterator[str]:
        if self.judge and self.answer_by != "generation":
            yield f"judge: found one, but with answer_by {self.answer_by} nothing is written"
        if self.judge and self.judge.prompt:
            yield from judge_problems(self.judge.prompt, ("question", "answer"), ("options",))

    @rule
    def _open_rows_are_written(self) -> Iterator[str]:
        if self.open_prompt is None:
            return
        if self.answer_by != "generation":
            yield f"open_prompt: found one, but with answer_by {self.answer_by} nothing is written"
        for problem in prompt_problems(self.open_prompt, ("question",), ("hint",)):
            yield f"open_{problem}"

    @rule
    def _prompt_holds_parts(self) -> Iterator[str]:
        # A model that is not to name a letter need not be shown the options.
        is_free = self.answer_by == "text_likelihood"
        needed = ("question",) if is_free else ("question", "options")
        possible = ("hint", "options") if is_free else ("hint",)
        yield from prompt_problems(self.prompt, needed, possible)

    def candidates(self, number: int) -> Mapping[str, str] | None:
        """Return the letters, and the text of each that may be likely."""
        if self.answer_by == "generation":
            return None
        _, options, _ = self._asked[number]
        if self.answer_by == "letter_likelihood":
            return {letter: letter for letter in options}
        return options

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the letter of the most likely answer, by letter or by character of its text."""
        _, options, _ = self._asked[number]
        is_text = self.answer_by == "text_likelihood"
        lengths = {letter: len(options[letter]) if is_text else 1 for letter in nlls}
        return min(nlls, key=lambda letter: nlls[letter] / lengths[letter])

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read question, options and answer."""
        options = self._options(row)
        if not options and self.open_prompt is not None:
            self._text(row, "answer")
            truths = tuple(text for text in as_list(self._cell(row, "answer")) if text)
            if not truths:
                raise ValueError("it has neither options nor an answer")
            return AskedRow(
                row=row,
                text=self._text(row, "question"),
                truths=truths,
                category=self._category(row),
            )
        if len(options) < 2:
            raise ValueError(f"it has {len(options)} options, expected at least 2")
        answer = self._text(row, "answer")
        return AskedRow(
            row=row,
            text=self._text(row, "question"),
            truths=(self._letter(answer, options, row),),
            category=self._category(row),
            options=options,
        )

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each question, or for each rotation of its options."""
        asked = self._asked

        def make(number: int) -> BenchmarkItem:
            question, options, letter = asked[number]
            truth = f"{letter}. {options[letter]}" if options else " | ".join(question.truths)
            return self._item(question, self._asks(question, options), truth=truth)

        return LazyItems(len(asked), make)

    def _asks(self, question: AskedRow, options: Mapping[str, str]) -> str:
        hint = self._text(question.row, "hint")
        parts = {"question": question.text, "hint": f"{hint}\n" if hint else ""}
        if not options and self.open_prompt is not None:
            return filled(self.open_prompt, **parts)
        lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return filled(self.prompt, options=lines, **parts)

    def shown_shot(self, question: AskedRow) -> tuple[str, str]:
        """Return the question with its options, and the letter, or the text if that decides."""
        options = question.options or {}
        letter = question.truths[0]
        answer = options[letter] if self.answer_by == "text_likelihood" else letter
        return self._asks(question, options), answer

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the right option is chosen, or the answer of a row without options is right."""
        found = []
        readings = self._readings(answers)
        for text, reading, (question, _, letter) in zip(
            answers, readings, self._asked, strict=True
        ):
            if reading is not None:
                found.append(float(reading.choice == letter))
                continue
            said, _ = split_reply(text, self.judge)
            found.append(score_of("number", said, question.truths))
        return found

    def to_judge(self, answers: Sequence[str]) -> dict[int, str]:
        """Return what the judge is asked about answers from which no option is read."""
        assert self.judge is not None
        return {
            number: filled(
                self.judge.prompt or CHOICE_PROMPT,
                question=question.text,
                options="\n".join(f"{letter}. {text}" for letter, text in options.items()),
                answer=said,
            )
            for number, (answer, (question, options, _)) in enumerate(
                zip(answers, self._asked, strict=True)
            )
            if options
            and (said := without_thoughts(answer))
            and not read_choice(said, options).choice
        }

    def _readings(self, answers: Sequence[str]) -> list[ChoiceReading | None]:
        """Return what each answer is read as, by the judge if by no rule; None without options."""
        found: list[ChoiceReading | None] = []
        for text, (_, options, _) in zip(answers, self._asked, strict=True):
            if not options:
                found.append(None)
                continue
            answer, reply = split_reply(text, self.judge)
            reading = read_choice(answer, options)
            if reading.choice is None and reply is not None:
                by_judge = read_choice(reply, options)
                reading = by_judge if by_judge.choice else reading
            found.append(reading)
        return found

    def question_numbers(self) -> list[int]:
        """Return the number of the question that each request is a rotation of."""
        return [question.row.number for question, _, _ in self._asked]

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """1 where the right option is chosen in each rotation."""
        right: dict[int, float] = {}
        for verdict, (question, _, _) in zip(self.verdicts(answers), self._asked, strict=True):
            number = question.row.number
            right[number] = min(right.get(number, 1.0), verdict)
        return list(right.values())

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, overall and by category; and from how many answers no option could be read."""
        questions = self.prepared.questions
        rules = [one.rule for one in self._readings(answers) if one is not None]
        unread = {f"num_answers_{name}": float(rules.count(name)) for name in FAILURES}
        # Guessing has to be right in each rotation.
        sizes = [len(question.options or ()) for question in questions]
        chance = mean([(1 / n) ** (n if self.circular else 1) if n else 0.0 for n in sizes])
        figures = self._figures(self.outcomes(answers), questions)
        judged = judged_figures(answers, self.judge)
        return figures | {"chance_fraction": chance} | unread | judged

    @cached_property
    def _asked(self) -> list[tuple[AskedRow, Mapping[str, str], str]]:
        """Question, options and right letter of each request."""
        asked: list[tuple[AskedRow, Mapping[str, str], str]] = []
        for question in self.prepared.questions:
            options = question.options or {}
            letters, texts = list(options), list(options.values())
            if not options:
                asked.append((question, {}, ""))
                continue
            right = letters.index(question.truths[0])
            for turn in range(len(letters) if self.circular else 1):
                turned = texts[turn:] + texts[:turn]
                letter = letters[(right - turn) % len(letters)]
                asked.append((question, dict(zip(letters, turned, strict=True)), letter))
        return asked

    def _options(self, row: QuestionRow) -> dict[str, str]:
        named = self._cell(row, "options")
        if isinstance(named, Mapping):
            # ARC has {"text": […], "label": […]}.
            labels, texts = as_list(named.get("label", ())), as_list(named.get("text", ()))
            if texts:
                return dict(zip(labels or LETTERS, texts, strict=False))
            return {str(k): text_of_cell(v) for k, v in named.items()}
        if named is not None and not isinstance(named, str | bytes | int | float):
            return dict(zip(LETTERS, as_list(named), strict=False))
        if isinstance(named, str) and len(texts := as_list(named)) > 1:
            return dict(zip(LETTERS, texts, strict=False))
        return {
            letter: text_of_cell(row.cells[letter]) for letter in LETTERS if letter in row.cells
        }

    def _letter(self, answer: str, options: Mapping[str, str], row: QuestionRow) -> str:
        bare = answer.strip("()[]. ")
        if bare in options:
            return bare
        if bare.upper() in options:
            return bare.upper()
        same = [k for k, text in options.items() if normalise(text) == normalise(answer)]
        if len(same) == 1:
            return same[0]
        is_list = not any(letter in row.cells for letter in LETTERS)
        if is_list and bare.isdecimal() and int(bare) < len(options):
            return list(options)[int(bare)]
        raise ValueError(f"its answer {answer[:60]!r} is none of the options {', '.join(options)}")


@BENCHMARKS.register("yes_no")
@dataclass(frozen=True, kw_only=True)
class YesNo(FileBenchmark):
    """Questions that are answered by yes or no, as those of POPE, MME and HallusionBench."""

    prompt: str = "{question}\nAnswer the question using a single word or phrase."
    """What is asked."""

    pairs: tuple[str, ...] = ()
    """Columns that tell which questions belong together, such as the image's name: all of them have
    to be answered rightly to count for `group_accuracy`. That is MME's accuracy+ (by image), and
    HallusionBench's fAcc (by figure) and qAcc (by question)."""

    max_tokens: PositiveInt = 16
    """Maximum answer length in tokens."""

    @rule
    def _prompt_holds_parts(self) -> Iterator[str]:
        yield from prompt_problems(self.prompt, ("question",), ("hint",))

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read question and answer."""
        answer = self._text(row, "answer")
        right = {"1": True, "0": False}.get(answer, read_yes_no(answer))
        if right is None:
            raise ValueError(f"its answer {answer[:60]!r} is neither yes nor no")
        return AskedRow(
            row=row,
            text=self._text(row, "question"),
            truths=("yes" if right else "no",),
            category=self._category(row),
        )

    def items(self) -> Sequence[BenchmarkItem]:
        """A request for each question."""
        return self._prompted(self.prompt)

    def shown_shot(self, question: AskedRow) -> tuple[str, str]:
        """Return the question, and yes or no."""
        return self._filled(self.prompt, question), question.truths[0].capitalize()

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the answer says what is right; what says neither is wrong."""
        return [
            float(read_yes_no(answer) is (question.truths[0] == "yes"))
            for answer, question in zip(answers, self.prepared.questions, strict=True)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, overall and by category; precision, recall and F1 of yes; groups."""
        questions = self.prepared.questions
        right = self.verdicts(answers)
        said = [read_yes_no(answer) for answer in answers]
        figures = self._figures(right, questions)
        figures |= pope_figures(said, [question.truths[0] == "yes" for question in questions])
        figures["num_answers_none"] = float(said.count(None))
        if not self.pairs:
            return figures
        groups = [
            tuple(text_of_cell(question.row.cells.get(name, "")) for name in self.pairs)
            for question in questions
        ]
        figures["group_accuracy_fraction"] = group_accuracy(right, groups)
        by_category: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            by_category.setdefault(question.category, []).append(number)
        # MME's score of a category: accuracy and accuracy+, in percent.
        for category, numbers in sorted(by_category.items()):
            verdicts = [right[number] for number in numbers]
            together = group_accuracy(verdicts, [groups[number] for number in numbers])
            figures[f"score_{category or 'all'}"] = 100 * (mean(verdicts) + together)
        figures["score_sum"] = sum(v for k, v in figures.items() if k.startswith("score_"))
        return figures
