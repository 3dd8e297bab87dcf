"""Make samples that are too long shorter, without ever cutting an image.

A conversation loses whole turns from its end: a question with all that answers it. A document loses
images from its end, each with the text after it. Images that are shown nowhere any more go too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from consomme.base.sample import ImageRef, Sample, Turn, content_of


def shorter_turns(turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Return what is left of a conversation without its last turns, shortest first.

    Each ends with an assistant's turn, before a question of the user. Empty if the conversation has
    one question only.
    """
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [
        tuple(turns[:end])
        for end in range(first + 1, len(turns))
        if turns[end].role == "user" and turns[end - 1].role == "assistant"
    ]


def shorter_documents(turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Return what is left of a document without its last images and their texts, shortest first.

    An image belongs to the text after it; images without a text between them belong together.
    """
    (turn,) = turns
    parts = turn.parts
    begins = [
        at
        for at, part in enumerate(parts)
        if isinstance(part, ImageRef) and not (at and isinstance(parts[at - 1], ImageRef))
    ]
    return [
        (replace(turn, content=content_of(_without_end(parts[:begin]))),) for begin in begins[1:]
    ]


def _without_end(parts: Sequence[str | ImageRef]) -> list[str | ImageRef]:
    """Return a document's parts without white space at its end."""
    *rest, last = parts
    return [*rest, last.rstrip() if isinstance(last, str) else last]


def with_turns(sample: Sample, turns: Sequence[Turn]) -> tuple[Sample, list[int]]:
    """Return a sample with other turns, and with the images only that these show.

    Args:
        sample: The sample.
        turns: With a reference to each image where it is shown.

    Returns:
        The sample, and which of its images it still has, by their index before.
    """
    kept = sorted({index for turn in turns for index in turn.image_indices})
    new = {index: number for number, index in enumerate(kept)}
    renumbered = tuple(
        replace(
            turn,
            content=content_of(
                ImageRef(new[part.index]) if isinstance(part, ImageRef) else part
                for part in turn.parts
            ),
        )
        if turn.image_indices
        else turn
        for turn in turns
    )
    return replace(sample, turns=renumbered, images=tuple(sample.images[k] for k in kept)), kept
