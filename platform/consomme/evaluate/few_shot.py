"""Draw the questions that are shown with their answers before a question."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache

from consomme.base.errors import DataError
from consomme.evaluate.question_files import QuestionRow, decoded
from consomme.vision.decode import upright_size


def draw_rows(
    row: QuestionRow,
    text: str,
    pool: Sequence[tuple[QuestionRow, str]],
    number: int,
    *,
    seed: int,
    is_own_file: bool,
) -> list[int]:
    """Draw rows for a question: never itself, nor one with an image of its own.

    Which are drawn depends on the seed and the number of the question, not on other questions.

    Args:
        row: Of the question.
        text: What it asks.
        pool: Rows to draw from, and what each asks.
        number: How many.
        seed: Of the drawing.
        is_own_file: Whether the pool is of the question's own file.

    Returns:
        Indices of the pool.

    Raises:
        DataError: There are not so many.
    """
    rng = random.Random(f"{seed}:{row.number}")
    drawn: list[int] = []
    seen: set[int] = set()
    while len(drawn) < number and len(seen) < len(pool):
        index = rng.randrange(len(pool))
        if index in seen:
            continue
        seen.add(index)
        other, other_text = pool[index]
        is_itself = is_own_file and other.number == row.number
        # Questions about no image are known by their text.
        is_copy = not row.images and not other.images and other_text == text
        if not (is_itself or is_copy) and not share_image(row.images, other.images):
            drawn.append(index)
    if len(drawn) < number:
        raise DataError(
            f"row {row.number}: found {len(drawn)} other questions about other images, and shots"
            f" is {number}; lower it, or name more of them: shots_from"
        )
    return drawn


def share_image(some: Sequence[bytes], others: Sequence[bytes]) -> bool:
    """Whether an encoded image occurs in both, pixel for pixel."""
    if not set(some).isdisjoint(others):
        return True
    sizes = {_size(data) for data in some}
    alike = [data for data in others if _size(data) in sizes]
    return bool(alike) and not {_pixels(data) for data in some}.isdisjoint(map(_pixels, alike))


@lru_cache(4096)
def _size(data: bytes) -> object:
    return upright_size(data)


@lru_cache(4096)
def _pixels(data: bytes) -> bytes:
    (image,) = decoded([data])
    rgb = image.convert("RGB")
    return hashlib.blake2b(repr(rgb.size).encode() + rgb.tobytes(), digest_size=16).digest()
