"""Strategies that merge a generated text into a sample's own turns, for training.

Original texts are never edited: a merge leaves one out as a whole (`replace`) or adds to it. A
generated text is about pictures, so in a conversation it goes to the first answer after them; later
answers belong to their questions. Pictures stay where they are.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.errors import DataError
from consomme.base.registry import Registry
from consomme.base.sample import ImageRef, Turn, content_of
from consomme.base.schema import added
from consomme.datasets.negatives import negatives, rule_name_problems

Turns = tuple[Turn, ...]


class Merge(Protocol):
    """Interface of every registered merge; several may be chained."""

    takes_documents: ClassVar[bool]
    """Whether it has a place for a text about a document; if not, documents are left as they
    are."""

    def __call__(
        self, turns: Turns, written: str, *, answer: int, prompt: str, question_for_caption: str
    ) -> Turns:
        """Return the turns with a generated text merged in.

        Args:
            turns: The sample's own turns.
            written: The generated text.
            answer: Index of the answer that it belongs to, from `find_answer`.
            prompt: The prompt of the generation.
            question_for_caption: The user turn to put before a caption that has none.
        """

    def beside_images(self, document: Turn, written: Mapping[int, str]) -> Turn:
        """Return a document with a text about each of its images beside that image.

        Args:
            document: A turn with images, for merges that take documents.
            written: Texts by the index of the image; one that stands in several places gets its
                text at the first.
        """


MERGES: Registry[Merge] = Registry("merge", "consomme/curate/caption/merges.py")


@MERGES.register("replace")
@dataclass(frozen=True, kw_only=True)
class Replace:
    """The generated text replaces the original one.

    Source: arXiv 2407.17453 (VILA²), "recaption only": worse there than concatenating.
    """

    takes_documents: ClassVar[bool] = True

    def __call__(
        self, turns: Turns, written: str, *, answer: int, prompt: str, question_for_caption: str
    ) -> Turns:
        """Replace the text of the answer; images in it stand before the new text."""
        refs = [ImageRef(index) for index in turns[answer].image_indices]
        return _with_parts(turns, answer, [*refs, written])

    def beside_images(self, document: Turn, written: Mapping[int, str]) -> Turn:
        """Put each text after its image, on a line of its own, and leave the others out."""
        parts: list[str | ImageRef] = []
        for index in dict.fromkeys(document.image_indices):
            parts += ["\n"] if parts else []
            parts += [ImageRef(index), written[index]]
        return replace(document, content=content_of(parts))


@MERGES.register("concatenate")
@dataclass(frozen=True, kw_only=True)
class Concatenate:
    """The original text verbatim, followed by the generated one.

    The original has names and facts that no model can see in the picture; the generated one
    describes what is visible. Source: arXiv 2407.17453 (VILA²), its default.
    """

    takes_documents: ClassVar[bool] = True

    separator: str = " "
    """Separates the two texts, unless one is empty."""

    side: Literal["after", "before"] = added("after")
    """On which side of its image a text about one image of a document is inserted."""

    def __call__(
        self, turns: Turns, written: str, *, answer: int, prompt: str, question_for_caption: str
    ) -> Turns:
        """Append to the answer."""
        between = self.separator if turns[answer].text and written else ""
        return _with_parts(turns, answer, [*turns[answer].parts, between + written])

    def beside_images(self, document: Turn, written: Mapping[int, str]) -> Turn:
        """Insert each text beside its image, into the original text."""
        parts: list[str | ImageRef] = []
        seen: set[int] = set()
        for number, part in enumerate(document.parts):
            if isinstance(part, str) or part.index in seen:
                parts.append(part)
                continue
            seen.add(part.index)
            text = written[part.index]
            step = 1 if self.side == "after" else -1
            beside = number + step
            has_text = 0 <= beside < len(document.parts) and isinstance(document.parts[beside], str)
            between = self.separator if has_text and text else ""
            parts += [part, text + between] if step == 1 else [between + text, part]
        return replace(document, content=content_of(parts))


@MERGES.register("append_turns")
@dataclass(frozen=True, kw_only=True)
class AppendTurns(Checked):
    """Append the prompt and the generated text as another question and answer.

    Source: arXiv 2407.17453 (VILA²), for the output of its specialists.
    """

    takes_documents: ClassVar[bool] = False

    question: str | None = None
    """Text of the user turn; None uses the prompt of the generation."""

    @rule
    def _question_has_words(self) -> Iterator[str]:
        if self.question is not None and not self.question.strip():
            yield "question: found an empty one, expected words, or null for the prompt"

    def __call__(
        self, turns: Turns, written: str, *, answer: int, prompt: str, question_for_caption: str
    ) -> Turns:
        """Add two turns; a caption without a question gets one first."""
        first = next(n for n, turn in enumerate(turns) if turn.role == "assistant")
        before = turns[:first]
        if not any(turn.role == "user" for turn in before):
            before = (*before, Turn(role="user", content=question_for_caption))
        return (
            *before,
            *turns[first:],
            Turn(role="user", content=prompt if self.question is None else self.question),
            Turn(role="assistant", content=written),
        )

    def beside_images(self, document: Turn, written: Mapping[int, str]) -> Turn:
        """Raise: questions and answers are no part of a document."""
        raise ValueError("found a document, expected a caption or a conversation")


@MERGES.register("hard_negatives")
@dataclass(frozen=True, kw_only=True)
class HardNegatives(Checked):
    """The generated text replaces the original one, and is asked for among hard negatives of it.

    Negatives are made by the rules of consomme/datasets/negatives.py, so now and then one is true
    as well. Their place among the options is drawn by the text. Source of the idea: NegCLIP, ARO,
    arXiv 2210.01936, which trains a dual encoder with them.
    """

    takes_documents: ClassVar[bool] = False

    kinds: tuple[str, ...] = ("swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel")
    """Rules; those that cannot change a text are left out, and if none can, nothing is asked."""

    max_negatives: PositiveInt = 3
    """Negatives beside the text, at most."""

    question: str = "Which of these describes the image?\n{options}\nAnswer with the letter."
    """What is asked."""

    @rule
    def _known_rules(self) -> Iterator[str]:
        yield from rule_name_problems(self.kinds)

    @rule
    def _question_holds_options(self) -> Iterator[str]:
        if "{options}" not in self.question:
            yield f"question: found no {{options}} in {self.question[:80]!r}"

    def __call__(
        self, turns: Turns, written: str, *, answer: int, prompt: str, question_for_caption: str
    ) -> Turns:
        """Replace the text of the answer, and add a question with options."""
        replaced = Replace()(
            turns,
            written,
            answer=answer,
            prompt=prompt,
            question_for_caption=question_for_caption,
        )
        rng = random.Random(written)
        made = list(negatives(written, written, self.kinds).values())
        options = [written, *rng.sample(made, min(len(made), self.max_negatives))]
        if len(options) == 1:
            return replaced
        rng.shuffle(options)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        lines = "\n".join(f"{a}. {text}" for a, text in zip(letters, options, strict=False))
        return AppendTurns(question=self.question.replace("{options}", lines))(
            replaced,
            letters[options.index(written)],
            answer=answer,
            prompt=prompt,
            question_for_caption=question_for_caption,
        )

    def beside_images(self, document: Turn, written: Mapping[int, str]) -> Turn:
        """Raise: questions and answers are no part of a document."""
        raise ValueError("found a document, expected a caption or a conversation")


def find_answer(turns: Sequence[Turn], shown: Collection[int]) -> int:
    """Return the index of the answer that a text about some images belongs to.

    It is the first one after all of them, which would otherwise be about what comes later; if
    several follow, the first that is learned.

    Args:
        turns: The sample's own turns. If none has an image, all of them come after the images.
        shown: Indices of the images.

    Raises:
        DataError: There is no assistant turn after the images.
    """
    begin = 0
    for index in shown:
        places = (n for n, turn in enumerate(turns) if index in turn.image_indices)
        begin = max(begin, next(places, 0))
    answers = [n for n, turn in enumerate(turns) if n >= begin and turn.role == "assistant"]
    learned = [n for n in answers if turns[n].is_labelled]
    if answers:
        return (learned or answers)[0]
    roles = ", ".join(turn.role for turn in turns) or "no turns at all"
    raise DataError(f"found {roles}; expected an assistant's turn to put the written text to")


def _with_parts(turns: Turns, at: int, parts: Sequence[str | ImageRef]) -> Turns:
    changed = replace(turns[at], content=content_of(parts))
    return (*turns[:at], changed, *turns[at + 1 :])
