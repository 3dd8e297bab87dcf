"""How a written text and a sample's own turns become the turns that are trained on.

One decision is made here: what came with the sample is never changed, only left out as a whole
(`replace`) or followed by more. A text is written about the picture, so in a conversation it meets
the first thing the assistant says; later answers belong to their questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from consomme.base.checked import Checked, rule
from consomme.base.errors import DataError
from consomme.base.registry import Registry
from consomme.base.sample import Turn

Turns = tuple[Turn, ...]


class Merge(Protocol):
    """What the registry promises about every merge; several may follow each other."""

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Return the turns with a written text in them.

        Args:
            turns: The sample's own.
            written: What the model wrote.
            prompt: What it was asked.
            question_for_caption: The question to a caption, where turns need one before it.

        Raises:
            DataError: The assistant says nothing in `turns`.
        """


MERGES: Registry[Merge] = Registry("merge", "consomme/curate/caption/merges.py")


@MERGES.register("replace")
@dataclass(frozen=True, kw_only=True)
class Replace:
    """The written text instead of the original one.

    Source: arXiv 2407.17453 (VILA²), "recaption only": worse there than concatenating.
    """

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Put the written text into the assistant's first turn."""
        return _with_first_answer(turns, written)


@MERGES.register("concatenate")
@dataclass(frozen=True, kw_only=True)
class Concatenate:
    """The original text, character for character, then the written one.

    The original knows names and facts that no model sees in the picture, the written one says what
    is to be seen. Source: arXiv 2407.17453 (VILA²), its default.
    """

    separator: str = " "
    """What stands between the two, if there is something on both sides."""

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Write on in the assistant's first turn."""
        original = turns[_first_answer(turns)].content
        between = self.separator if original and written else ""
        return _with_first_answer(turns, original + between + written)


@MERGES.register("append_turns")
@dataclass(frozen=True, kw_only=True)
class AppendTurns(Checked):
    """The prompt and the written text as one more question and answer, after all the others.

    Source: arXiv 2407.17453 (VILA²), what its specialists write.
    """

    question: str | None = None
    """What the user asks; None takes the prompt that the model was asked with."""

    @rule
    def _question_has_words(self) -> Iterator[str]:
        if self.question is not None and not self.question.strip():
            yield "question: found an empty one, expected words, or null for the prompt"

    def __call__(
        self, turns: Turns, written: str, *, prompt: str, question_for_caption: str
    ) -> Turns:
        """Add two turns; a caption first becomes the answer to its question."""
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
    return (*turns[:first], replace(turns[first], content=content), *turns[first + 1 :])
