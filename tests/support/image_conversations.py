"""Conversations with several images in all places, and what plain transformers makes of them.

The reference has none of consomme's code but the opening of the folder: float64, one conversation
at a time, all logits; labelled tokens are found by searching the tokens for each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from consomme.base.sample import ImageRef, Turn
from consomme.models.weights import open_model
from tests.support.families import noise

SIZES = [(40, 40), (90, 30), (25, 70), (64, 48)]

WRITES_IMAGES_FIRST = {"llava": "<image>", "aya_vision": "<image>"}
"""Families whose template writes all images of a turn before its text, and the mark to put into the
text instead."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One conversation."""

    name: str
    turns: tuple[Turn, ...]
    num_images: int


def user(*parts: str | int) -> Turn:
    """A user turn of texts and indices of images."""
    content = tuple(ImageRef(part) if isinstance(part, int) else part for part in parts)
    is_text = all(isinstance(part, str) for part in content)
    return Turn(role="user", content="".join(map(str, content)) if is_text else content)


def says(text: str, *, is_labelled: bool = True) -> Turn:
    return Turn(role="assistant", content=text, is_labelled=is_labelled)


CASES = [
    Case(name="text alone", turns=(user("describe it."), says("a star")), num_images=0),
    Case(name="one first", turns=(user(0, "describe it."), says("a large circle")), num_images=1),
    Case(
        name="three first",
        turns=(user(0, 1, 2, "which is a circle?"), says("the second of them")),
        num_images=3,
    ),
    Case(
        name="three first, other answer",
        turns=(user(0, 1, 2, "which is a circle?"), says("none")),
        num_images=3,
    ),
    Case(
        name="over turns",
        turns=(
            user(0, "what is it?"),
            says("a star"),
            user(1, "and this?"),
            says("a blue square"),
            user(2, "and this?"),
            says("green"),
        ),
        num_images=3,
    ),
    Case(
        name="in mid-sentence",
        turns=(user("what is in ", 0, " and not in ", 1, " or ", 2, "?"), says("a triangle")),
        num_images=3,
    ),
    Case(
        name="last",
        turns=(user("the color of this: ", 0), says("red"), user("not of ", 1), says("small")),
        num_images=2,
    ),
    Case(
        name="same image twice",
        turns=(user(0, "against ", 1, " and again ", 0), says("equal")),
        num_images=2,
    ),
    Case(
        name="one answer labelled",
        turns=(
            user(0, "what is it?"),
            says("a star", is_labelled=False),
            user(1, "and this?"),
            says("a square"),
        ),
        num_images=2,
    ),
]


def images_of(case: Case) -> tuple[Image.Image, ...]:
    return tuple(noise(number, *SIZES[number]) for number in range(case.num_images))


class PlainReference:
    """A family's own processor and forward pass, in float64."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.model, self.processor = open_model(folder, torch.float64)
        self.words = getattr(self.processor, "tokenizer", self.processor)
        # LLaVA's template ends answers with a space; the model was trained with this token.
        self.end = "</s>" if name == "llava" else ""

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Chat messages with every part where it stands."""
        mark = WRITES_IMAGES_FIRST.get(self.name)
        messages = []
        for turn in turns:
            parts: list[dict[str, str]] = []
            is_scattered = any(isinstance(part, str) for part in turn.parts[:-1])
            for part in turn.parts:
                if isinstance(part, str):
                    parts.append({"type": "text", "text": part})
                elif mark and is_scattered:
                    parts.append({"type": "text", "text": mark})
                else:
                    parts.append({"type": "image"})
            if mark and is_scattered:
                parts = [{"type": "text", "text": "".join(part["text"] for part in parts)}]
            if not any(part["type"] == "text" for part in parts):
                parts.append({"type": "text", "text": ""})
            messages.append({"role": turn.role, "content": parts})
        return messages

    def inputs(self, turns: Sequence[Turn], images: Sequence[Image.Image], **options: Any) -> Any:
        """What the processor makes of a conversation."""
        ended = [
            replace(turn, content=f"{turn.text}{self.end}") if turn.role == "assistant" else turn
            for turn in turns
        ]
        text = self.processor.apply_chat_template(self.messages(ended), tokenize=False, **options)
        bos = self.words.bos_token
        special = not (bos and text.startswith(bos))
        shown = [images[index] for turn in turns for index in turn.image_indices]
        given = {"images": [shown]} if shown else {}
        inputs = self.processor(
            text=[text], **given, return_tensors="pt", add_special_tokens=special
        )
        return {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }

    @torch.no_grad()
    def nlls(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> list[tuple[float, int]]:
        """Nats and tokens of each labelled answer."""
        inputs = self.inputs(turns, images)
        logp_TV = self.model(**inputs).logits[0].log_softmax(dim=-1)
        ids = inputs["input_ids"][0].tolist()
        found, at = [], 1
        for turn in turns:
            if turn.role != "assistant":
                continue
            begin, end = self.span(ids, turn.text, at)
            at = end
            if turn.is_labelled:
                nll = -sum(float(logp_TV[t - 1, ids[t]]) for t in range(begin, end))
                found.append((nll, end - begin))
        return found

    @torch.no_grad()
    def document_nlls(
        self, parts: Sequence[str | int], images: Sequence[Image.Image], mark: str
    ) -> list[tuple[float, int]]:
        """Nats and tokens of each text after the first image; the last one ends the document."""
        text = "".join(part if isinstance(part, str) else mark for part in parts)
        shown = [images[part] for part in parts if isinstance(part, int)]
        inputs = self.processor(
            text=[text + self.words.eos_token], images=[shown], return_tensors="pt"
        )
        inputs = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        logp_TV = self.model(**inputs).logits[0].log_softmax(dim=-1)
        ids = inputs["input_ids"][0].tolist()
        first = next(n for n, part in enumerate(parts) if isinstance(part, int))
        found, at = [], 1
        for number, part in enumerate(parts):
            if not isinstance(part, str) or number < first:
                continue
            begin, end = self.span(ids, part.strip(), at)
            if number < len(parts) - 1:
                # Only the last text has the token that ends the document.
                words = self.words.decode(ids[begin : end - 1]).strip()
                end = end - 1 if words == part.strip() else end
            at = end
            nll = -sum(float(logp_TV[t - 1, ids[t]]) for t in range(begin, end))
            found.append((nll, end - begin))
        return found

    def span(self, ids: list[int], answer: str, at: int) -> tuple[int, int]:
        """The shortest tokens after `at` that read as the answer, the latest of those."""
        fits = [
            (begin, end)
            for begin in range(at, len(ids))
            for end in range(begin + 1, min(len(ids), begin + 30) + 1)
            if self.words.decode(ids[begin:end]).strip() == answer
        ]
        begin, end = min(fits, key=lambda span: (span[1] - span[0], -span[0]))
        special = {t for t, added in self.words.added_tokens_decoder.items() if added.special}
        return begin, end + (end < len(ids) and ids[end] in special)
