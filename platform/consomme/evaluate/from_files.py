"""Questions that stand in a file, whatever is asked: rows, images, prompts, figures.

Each row of the file is a question. Rows that cannot be read count as answered wrongly, and are
counted by themselves.
"""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from consomme.base.bounds import NonNegativeInt, PositiveInt
from consomme.base.checked import rule
from consomme.base.errors import DataError
from consomme.base.sample import Content, ImageRef, Turn, content_of
from consomme.base.schema import added, located
from consomme.base.suggest import did_you_mean
from consomme.evaluate.benchmark import (
    BenchmarkItem,
    Guidable,
    accuracy_by_kind,
    accuracy_figures,
)
from consomme.evaluate.disjoint import name_of
from consomme.evaluate.few_shot import draw_rows
from consomme.evaluate.lazy import LazyImages, LazyItems
from consomme.evaluate.question_files import (
    IMAGE_COLUMNS,
    QuestionFile,
    QuestionRow,
    is_image_column,
    read_question_file,
    text_of_cell,
)
from consomme.vision.guidance import DataBoxes

PARTS: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt", "text", "instruction"),
    "answer": ("answer", "answers", "label", "gt_answer", "target"),
    "options": ("options", "choices", "multi-choice options"),
    "hint": ("hint", "context"),
    "category": ("category", "l2-category", "l2_category", "subject", "task", "question_type"),
}
"""Part of a question -> columns that may hold it, in order of preference."""

logger = logging.getLogger(__name__)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARK = re.compile(r"<image(?:[ _]?(\d+))?>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class AskedRow:
    """A row as it is asked."""

    row: QuestionRow
    text: str
    truths: tuple[str, ...]
    """Right answers; a letter for multiple choice, `yes` or `no` for these."""

    category: str = ""
    options: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The questions of a file as a benchmark asks them."""

    questions: tuple[AskedRow, ...]
    problems: tuple[str, ...]
    """What is wrong with each row that cannot be asked."""


@dataclass(frozen=True, kw_only=True)
class FileBenchmark(Guidable, ABC):
    """What all benchmarks from files share."""

    not_identity: ClassVar[tuple[str, ...]] = ("file", "label", "image_root", "shots_from")
    """Fields that change no answer, given `data_version`."""

    file: str = located()
    """The questions: TSV, CSV, JSON, JSON lines, Parquet or WebDataset; or a folder or glob of it;
    local, in a store, or `hf://datasets/…`. Images stand in it (base64 or bytes), are named by
    paths, or are those of another row, by its index."""

    label: str = ""
    """Name of the benchmark in tables; empty takes the file's name."""

    image_root: str | None = located(None)
    """Folder of images that are named by paths; None: the folder of the file."""

    columns: dict[str, str] = field(default_factory=dict)
    """Where rows hold what, if not under the common names: question, answer, options, hint,
    category."""

    where: dict[str, str] = field(default_factory=dict)
    """Only rows whose columns have these values, such as `{split: dev}`."""

    max_rows: PositiveInt | None = None
    """Only so many rows, evenly spread; None takes all."""

    blank: bool = False
    """Show grey images, which gives the accuracy of guessing."""

    text_only: bool = False
    """Show no images at all."""

    shots: NonNegativeInt = added(0)
    """Other questions that are shown with their answers before each question, as turns of the
    conversation. They are drawn for each question anew: never the question itself, nor one with an
    image of its own, pixel for pixel."""

    shots_from: str | None = located(None)
    """A file of questions to draw `shots` from, such as the training split; None: the file itself,
    of which `where` holds."""

    shots_seed: int = added(0)
    """Seed of the drawing."""

    @rule
    def _known_parts(self) -> Iterator[str]:
        for part in self.columns:
            if part not in PARTS:
                yield f"columns.{part}: unknown{did_you_mean(part, PARTS)}; expected some of" + (
                    f" {', '.join(PARTS)}"
                )

    @rule
    def _one_control(self) -> Iterator[str]:
        if self.blank and self.text_only:
            yield "blank, text_only: found both; choose one control"

    @rule
    def _shots_are_asked_for(self) -> Iterator[str]:
        if not self.shots and (self.shots_from or self.shots_seed):
            yield "shots_from, shots_seed: found one of them, but shots is 0, so none is shown"

    @rule
    def _only_the_question_is_guided(self) -> Iterator[str]:
        if self.guidance and self.shots:
            yield f"guidance, shots: found {self.shots} shots, whose images have no boxes; drop one"
        if self.guidance and self.text_only:
            yield "guidance, text_only: found both, but no image is shown; choose one"

    @rule
    def _shots_can_be_shown(self) -> Iterator[str]:
        if self.shots and type(self).shown_shot is FileBenchmark.shown_shot:
            yield f"shots: found {self.shots}, but questions of this kind are asked without any"

    def data_version(self) -> str:
        """Return a hash of the file's rows and images, and of those that shots are drawn from.

        Raises:
            DataError: It cannot be read.
        """
        if not self.has_shots_elsewhere:
            return self.rows.version
        versions = f"{self.rows.version}\n{self._shot_rows.version}"
        return hashlib.sha256(versions.encode()).hexdigest()

    @property
    def has_shots_elsewhere(self) -> bool:
        """Whether shots are drawn from another file."""
        return self.shots_from not in (None, self.file)

    @cached_property
    def _shot_rows(self) -> QuestionFile:
        if not self.has_shots_elsewhere:
            return self.rows
        return read_question_file(str(self.shots_from), self.image_root)

    @cached_property
    def _shot_pool(self) -> list[tuple[AskedRow, str, str]]:
        """Questions that may be shots, what each asks, and its answer."""
        pool = []
        for row in self._shot_rows.rows:
            if not self.has_shots_elsewhere and not self._holds(row):
                continue
            try:
                question = self.question_of(row)
            except ValueError:
                continue
            pool.append((question, *self.shown_shot(question)))
        return pool

    def _shots_of(self, question: AskedRow) -> list[tuple[AskedRow, str, str]]:
        """Draw the shots of a question."""
        if not self.shots:
            return []
        pool = self._shot_pool
        rows = [(one.row, text) for one, text, _ in pool]
        own_text, _ = self.shown_shot(question)
        drawn = draw_rows(
            question.row,
            own_text,
            rows,
            self.shots,
            seed=self.shots_seed,
            is_own_file=not self.has_shots_elsewhere,
        )
        return [pool[index] for index in drawn]

    def shown_shot(self, question: AskedRow) -> tuple[str, str]:
        """Return what a question asks and its right answer, as they are shown before another one.

        Kinds that do not say so refuse shots.
        """
        raise TypeError(f"{type(self).__name__} shows no shots")

    def _holds(self, row: QuestionRow) -> bool:
        """Whether a row is one of those that are asked."""
        return all(text_of_cell(row.cells.get(k, "")) == v for k, v in self.where.items())

    @cached_property
    def rows(self) -> QuestionFile:
        """The file, read once for this object.

        Raises:
            DataError: It cannot be read.
        """
        return read_question_file(self.file, self.image_root)

    @cached_property
    def prepared(self) -> Prepared:
        """The questions, and what is wrong with the rows that are none.

        Raises:
            DataError: No row is a question.
        """
        return _prepare(self)

    def texts_of(self, question: AskedRow) -> tuple[str, ...]:
        """Return all texts of a question that are its own: it, its hint, answers, options."""
        texts = (question.text, self._text(question.row, "hint"), *question.truths)
        return tuple(dict.fromkeys(t for t in (*texts, *(question.options or {}).values()) if t))

    def question_names(self) -> list[frozenset[str]]:
        """Name each question by what is asked, and by its row; see `consomme.evaluate.disjoint`."""
        return [_names(question) for question in self.prepared.questions]

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """One score in [0, 1] per question."""
        return self.verdicts(answers)

    def candidates(self, number: int) -> Mapping[str, str] | None:
        """Return possible answers to a request, if likelihood decides; None: the model writes."""
        del number
        return None

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the most likely answer."""
        del number
        return min(nlls, key=lambda name: nlls[name])

    @abstractmethod
    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """One score in [0, 1] per request."""

    @abstractmethod
    def question_of(self, row: QuestionRow) -> AskedRow:
        """Make a question of a row.

        Raises:
            ValueError: It is none; the text says why.
        """

    def _cell(self, row: QuestionRow, part: str) -> Any:
        names = (self.columns[part],) if part in self.columns else PARTS[part]
        return next((row.cells[name] for name in names if name in row.cells), None)

    def _category(self, row: QuestionRow) -> str:
        # Figures are named by it, and their names have parts between slashes.
        return self._text(row, "category").replace("/", "-")

    def _text(self, row: QuestionRow, part: str) -> str:
        value = self._cell(row, part)
        if value is None and part in ("question", "answer"):
            names = (self.columns[part],) if part in self.columns else PARTS[part]
            raise ValueError(f"it has no {part}: none of the columns {', '.join(names)}")
        return "" if value is None else text_of_cell(value)

    def _prompted(self, prompt: str) -> Sequence[BenchmarkItem]:
        """Return a request for each question: a prompt with the question and its hint filled in."""
        questions = self.prepared.questions

        def make(number: int) -> BenchmarkItem:
            question = questions[number]
            return self._item(question, self._filled(prompt, question))

        return LazyItems(len(questions), make)

    def _filled(self, prompt: str, question: AskedRow) -> str:
        hint = self._text(question.row, "hint")
        return filled(prompt, question=question.text, hint=f"{hint}\n" if hint else "")

    def _item(self, question: AskedRow, text: str, *, truth: str = "") -> BenchmarkItem:
        turns: list[Turn] = []
        images: list[bytes] = []

        def ask(row: QuestionRow, asked: str) -> None:
            has_images = not self.text_only
            content = _placed(asked, len(row.images), has_images=has_images, first=len(images))
            turns.append(Turn(role="user", content=content))
            images.extend(row.images if has_images else ())

        for shot, shot_text, answer in self._shots_of(question):
            ask(shot.row, shot_text)
            turns.append(Turn(role="assistant", content=answer))
        ask(question.row, text)
        return BenchmarkItem(
            turns=tuple(turns),
            images=LazyImages(images, blank=self.blank) if images else (),
            truth=truth or " | ".join(dict.fromkeys(question.truths)),
            meta=question.row.cells,
        )

    def _figures(self, right: Sequence[float], questions: Sequence[AskedRow]) -> dict[str, float]:
        """Return accuracy with its interval, and by category; bad rows count as wrong."""
        prepared = self.prepared
        figures = accuracy_figures([*right, *([0.0] * len(prepared.problems))])
        figures["num_unreadable_rows"] = float(len(prepared.problems))
        categories = [question.category for question in questions]
        if any(categories):
            figures |= accuracy_by_kind(right, categories)
        return figures


_NOT_CONTENT = ("index", "id", "split", *IMAGE_COLUMNS)
"""Columns that say where a row stands, and not what it asks."""


def _names(question: AskedRow) -> frozenset[str]:
    images = question.row.images
    options = question.options or {}
    truths = [options.get(truth, truth) for truth in question.truths]
    cells = {
        name: text_of_cell(value)
        for name, value in question.row.cells.items()
        if name.lower() not in _NOT_CONTENT and not is_image_column(name)
    }
    return frozenset(
        [
            name_of("asked", question.text, *sorted(options.values()), *sorted(truths), *images),
            name_of("row", *(part for key in sorted(cells) for part in (key, cells[key])), *images),
        ]
    )


def _prepare(benchmark: FileBenchmark) -> Prepared:
    file = benchmark.rows
    boxes = benchmark.guidance and benchmark.guidance.source()
    of_boxes = (boxes.column,) if isinstance(boxes, DataBoxes) else ()
    for name in (*benchmark.columns.values(), *benchmark.where, *of_boxes):
        if name not in file.columns:
            raise DataError(
                f"{file.url}: found no column {name!r}{did_you_mean(name, file.columns)}; it has"
                f" {', '.join(file.columns)}"
            )
    rows = [row for row in file.rows if benchmark._holds(row)]
    if benchmark.max_rows is not None and benchmark.max_rows < len(rows):
        number = benchmark.max_rows
        rows = [rows[len(rows) * k // number] for k in range(number)]
    questions, problems = [], list(file.problems)
    for row in rows:
        try:
            questions.append(benchmark.question_of(row))
        except ValueError as error:
            problems.append(f"row {row.number}: {error}")
    if not questions:
        found = problems[0] if problems else f"no row where {dict(benchmark.where)}"
        raise DataError(
            f"{file.url}: found no question for {type(benchmark).__name__}: {found}. Its columns"
            f" are {', '.join(file.columns)}; say where it has what: columns={{question: …}}"
        )
    if problems:
        logger.warning(
            "%s: %d rows cannot be asked and count as wrong; %s",
            file.url,
            len(problems),
            problems[0],
        )
    return Prepared(questions=tuple(questions), problems=tuple(problems))


def _placed(text: str, num_images: int, *, has_images: bool, first: int = 0) -> Content:
    """Return a text with references to images where its marks stand.

    Images that no mark names stand before the text, as people ask about them. Without images, marks
    are taken out.

    Args:
        text: With marks, or without.
        num_images: Images that it is about.
        has_images: Whether they are shown.
        first: Index of the first of them in the conversation.
    """
    parts: list[str | ImageRef] = []
    end = 0
    used: set[int] = set()
    for match in _MARK.finditer(text):
        index = int(match[1]) - 1 if match[1] else len(used)
        if not 0 <= index < num_images:
            continue
        parts.append(text[end : match.start()])
        if has_images:
            parts.append(ImageRef(first + index))
        used.add(index)
        end = match.end()
    parts.append(text[end:])
    if not has_images:
        return " ".join("".join(str(part) for part in parts).split(" ")).strip()
    rest = [ImageRef(first + index) for index in range(num_images) if index not in used]
    return content_of([*rest, *parts])


def filled(prompt: str, **parts: str) -> str:
    """Fill a prompt; braces in the parts stay as they are."""
    return re.sub(r"\{(" + "|".join(parts) + r")\}", lambda match: parts[match[1]], prompt).strip()


def prompt_problems(prompt: str, needed: Sequence[str], possible: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the places of a prompt."""
    found = re.findall(r"\{(\w+)\}", prompt)
    for name in needed:
        if name not in found:
            yield f"prompt: found no {{{name}}} in {prompt[:80]!r}"
    for name in found:
        if name not in (*needed, *possible):
            yield f"prompt: found {{{name}}}, expected some of " + ", ".join(
                f"{{{one}}}" for one in (*needed, *possible)
            )
