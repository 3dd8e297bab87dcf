"""Strategies that merge a generated text into a sample's own turns, for training.

Original texts are never edited: a merge leaves one out as a whole (`replace`) or adds to it. A
generated text is about the picture, so in a conversation it goes to the first assistant turn; later
answers belong to their questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from consomme.base.checked import Checked, rule
from consomme.base.errors import DataError
from consomme.base.registry import Registry
from consomme.base.sample import Turn, with_text

Turns = tuple[Turn, ...]


class Merge(Protocol):
    """Interface of every registered merge; several may be chained."""

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Return the turns with a generated text merged in.

        Args:
            turns: The sample's own turns.
            written: The generated text.
            prompt: The prompt of the generation.
            question_for_caption: The user turn to put before a caption that has none.

        Raises:
            DataError: There is no assistant turn in `turns`.
        """


MERGES: Registry[Merge] = Registry("merge", "consomme/curate/caption/merges.py")


@MERGES.register("replace")
@dataclass(frozen=True, kw_only=True)
class Replace:
    """The generated text replaces the original one.

    Source: arXiv 2407.17453 (VILA²), "recaption only": worse there than concatenating.
    """

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Replace the first assistant turn."""
        return _with_first_answer(turns, written)


@MERGES.register("concatenate")
@dataclass(frozen=True, kw_only=True)
class Concatenate:
    """The original text verbatim, followed by the generated one.

    The original has names and facts that no model can see in the picture; the generated one
    describes what is visible. Source: arXiv 2407.17453 (VILA²), its default.
    """

    separator: str = " "
    """Separates the two texts, unless one is empty."""

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Append to the first assistant turn."""
        original = turns[_first_answer(turns)].text
        between = self.separator if original and written else ""
        return _with_first_answer(turns, original + between + written)


@MERGES.register("append_turns")
@dataclass(frozen=True, kw_only=True)
class AppendTurns(Checked):
    """Append the prompt and the generated text as another question and answer.

    Source: arXiv 2407.17453 (VILA²), for the output of its specialists.
    """

    question: str | None = None
    """Text of the user turn; None uses the prompt of the generation."""

    @rule
    def _question_has_words(self) -> Iterator[str]:
        if self.question is not None and not self.question.strip():
            yield "question: found an empty one, expected words, or null for the prompt"

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Add two turns; a caption without a question gets one first."""
        first = _first_answer(turns)
        before = turns[:first]
        if not any(turn.role == "user" for turn in before):
            before = (*before, Turn(role="user", content=question_for_caption))
        return (
            *before,
            *turns[first:],
            Turn(role="user", content=prompt if self.question is None else self.question),
            Turn(role="assistant", content=written),
        )


def _first_answer(turns: Sequence[Turn]) -> int:
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            return index
    roles = ", ".join(turn.role for turn in turns) or "no turns at all"
    raise DataError(f"found {roles}; expected an assistant's turn to put the written text to")


def _with_first_answer(turns: Turns, content: str) -> Turns:
    first = _first_answer(turns)
    return (*turns[:first], with_text(turns[first], content), *turns[first + 1 :])
