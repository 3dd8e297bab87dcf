"""Write turns with images as the messages of a chat template, each image in its place.

Many templates write all images of a turn before its text, as LLaVA's does. Which do is found by
rendering the same turns with a different word for each text: the words and the template's own image
marks have to come out in order. Where they do not, the mark is written into the text, which is how
these families are trained on interleaved images; where that does not help, the conversation is
refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from consomme.base.sample import ImageRef, Turn
from consomme.models.encoded import LayoutRefusedError

Message = dict[str, Any]

_WORD = "zqx{}qz"
_WORD_PATTERN = r"zqx\d+qz"
_ONE = re.compile(r"(?<!\d)1(?!\d)")


class ImageLayout:
    """Decides how the turns of one model's conversations are written."""

    def __init__(self, render: Callable[[list[Message]], str], marker: Callable[[], str]) -> None:
        """Keep the template.

        Args:
            render: Renders messages by the chat template.
            marker: Returns what the template writes for an image that begins a conversation.
        """
        self._render, self._marker = render, marker
        self._inline: dict[object, frozenset[int]] = {}

    @property
    def pattern(self) -> str:
        """Regular expression of an image mark in a rendered text; a 1 in it counts images."""
        return _ONE.sub(r"\\d+", re.escape(self._marker()))

    def mark(self, number: int) -> str:
        """Return the mark of an image, counted from 0."""
        return _ONE.sub(str(number + 1), self._marker())

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """Return turns as messages with content parts.

        Raises:
            LayoutRefusedError: The template cannot write the images in their places.
        """
        if is_simple(turns):
            return [to_message(turn) for turn in turns]
        key = tuple(
            (turn.role, tuple(isinstance(part, ImageRef) for part in turn.parts)) for turn in turns
        )
        if key not in self._inline:
            self._inline[key] = self._choose(turns)
        return self._write(turns, self._inline[key])

    def inlined(self, turns: Sequence[Turn]) -> list[str]:
        """Return the text of each turn with marks for its images."""
        texts, number = [], 0
        for turn in turns:
            text = ""
            for part in turn.parts:
                if isinstance(part, str):
                    text += part
                else:
                    text += self.mark(number)
                    number += 1
            texts.append(text)
        return texts

    def _write(self, turns: Sequence[Turn], inline: frozenset[int]) -> list[Message]:
        texts = self.inlined(turns)
        return [
            {"role": turn.role, "content": [{"type": "text", "text": texts[n]}]}
            if n in inline
            else to_message(turn)
            for n, turn in enumerate(turns)
        ]

    def _choose(self, turns: Sequence[Turn]) -> frozenset[int]:
        """Return the turns whose images have to be written into their text."""
        if not self._marker():
            raise LayoutRefusedError(
                "the chat template writes nothing for an image, so it cannot show several"
            )
        with_images = [n for n, turn in enumerate(turns) if turn.image_indices]
        # An answer is compared with its text, so its images stand in it.
        answers = [n for n in with_images if turns[n].role == "assistant"]
        scattered = [n for n in with_images if not _leads(turns[n]) or n in answers]
        probe, expected = _probe(turns)
        for chosen in dict.fromkeys(
            [frozenset(answers), frozenset(scattered), frozenset(with_images)]
        ):
            if self._order(self._write(probe, chosen)) == expected:
                return chosen
        shape = "; ".join(
            f"{turn.role}: "
            + " ".join("text" if isinstance(p, str) else "image" for p in turn.parts)
            for turn in turns
        )
        raise LayoutRefusedError(
            f"the chat template does not write images where they stand ({shape}); this family takes"
            " no conversation of this shape"
        )

    def _order(self, messages: list[Message]) -> list[str]:
        """Return the words and marks of a rendered probe, in order."""
        try:
            text = self._render(messages)
        # A template is a program of the model's author and may raise anything.
        except Exception:  # noqa: BLE001
            return []
        found = re.finditer(f"{_WORD_PATTERN}|(?:{self.pattern})", text)
        return [match[0] if match[0].startswith("zqx") else "image" for match in found]


def _probe(turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """Return turns with a word for each text, and the words and images in their order."""
    probe, expected = [], []
    for turn in turns:
        parts: list[str | ImageRef] = []
        for part in turn.parts:
            if isinstance(part, ImageRef):
                expected.append("image")
                parts.append(part)
            else:
                word = _WORD.format(len(expected))
                expected.append(word)
                # Spaces keep words apart from marks.
                parts.append(f" {word} ")
        content = tuple(parts) if turn.image_indices else "".join(map(str, parts)).strip()
        probe.append(dataclasses.replace(turn, content=content))
    return probe, expected


def is_simple(turns: Sequence[Turn]) -> bool:
    """Whether there is no image, or one at the beginning of the first user turn."""
    with_images = [turn for turn in turns if turn.image_indices]
    if not with_images:
        return True
    first = next((turn for turn in turns if turn.role == "user"), None)
    if first is None or with_images != [first]:
        return False
    return len(first.image_indices) == 1 and _leads(first)


def _leads(turn: Turn) -> bool:
    """Whether all images of a turn stand before its text."""
    kinds = [isinstance(part, str) for part in turn.parts]
    return kinds == sorted(kinds) and sum(kinds) <= 1


def to_message(turn: Turn) -> Message:
    """Return a turn as a message with content parts, one of them a text at least."""
    parts: list[dict[str, str]] = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in turn.parts
    ]
    if not any(part["type"] == "text" for part in parts):
        parts.append({"type": "text", "text": ""})
    return {"role": turn.role, "content": parts}
