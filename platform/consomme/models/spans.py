"""Find the labelled texts of a conversation in the tokens that its processor made.

A span of tokens is decoded again and compared with the text, so a wrong span is an error and never
a score.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Collection, Sequence

from consomme.base.errors import DataError
from consomme.base.sample import ImageRef, Turn
from consomme.models.encoded import LayoutRefusedError
from consomme.models.recording import RecordingTokenizer
from consomme.models.turn_end import extend_over_end


def char_map(
    text: str, rendered: str, num_shown: int, pattern: str, special: Sequence[str]
) -> Callable[[int], int]:
    """Return where a character of the rendered text is in the text that was tokenized.

    The processor inserts tokens for each image, and some insert or append others. For a single
    image before all answers, `char_offset` is enough.

    Args:
        text: That was tokenized.
        rendered: What the template wrote.
        num_shown: Number of images in it.
        pattern: Regular expression of the mark of an image.
        special: Tokens that may follow the text.

    Raises:
        DataError: The text between images is not the rendered one.
        LayoutRefusedError: There are other marks than those of the images.
    """
    marks = list(re.finditer(pattern, rendered))
    if len(marks) != num_shown:
        raise LayoutRefusedError(
            f"found {len(marks)} marks of images in the conversation, expected one for"
            f" each of its {num_shown} images"
        )
    bounds = [0, *(mark.end() for mark in marks)]
    stops = [*(mark.start() for mark in marks), len(rendered)]
    texts = [rendered[begin:end] for begin, end in zip(bounds, stops, strict=True)]
    tokens = "|".join(re.escape(token) for token in special if token)
    whole = "(.*?)" + "(.+?)".join(f"({re.escape(text)})" for text in texts) + f"(?:{tokens})*$"
    found = re.match(whole, text, re.DOTALL)
    if not found:
        raise DataError(
            "the processor changes the text between images: expected"
            f" {texts[-1][-60:]!r} to end {text[-60:]!r}"
        )
    # Group 1 is what stands before the text, then text and image take turns.
    begins = [found.start(2 + 2 * n) for n in range(len(texts))]

    def place(at: int) -> int:
        number = bisect.bisect_right(bounds, at) - 1
        return begins[number] + at - bounds[number]

    return place


def char_offset(
    text: str, rendered: str, first_answer: int, special: Sequence[str]
) -> Callable[[int], int]:
    """Return where a character from the first answer on is in the text that was tokenized.

    Args:
        text: That was tokenized.
        rendered: What the template wrote.
        first_answer: Where the first labelled text begins in `rendered`; no image follows it.
        special: Tokens that may follow the text.

    Raises:
        DataError: The text from the first answer on is not the rendered one.
    """
    tail = rendered[first_answer:]
    before, found, after = text.rpartition(tail)
    # Chameleon's processor ends a text with a token of its own.
    for token in special:
        after = after.replace(token, "")
    if not found or after:
        raise DataError(
            "the processor changes the text after the image: expected it to end with"
            f" {tail[:60]!r}, found {text[-60:]!r}"
        )
    offset = len(before) - (len(rendered) - len(tail))
    return lambda at: at + offset


def token_span(
    recorder: RecordingTokenizer,
    ends: Collection[int],
    begin: int,
    answer: str,
    *,
    is_end: bool,
) -> tuple[int, int]:
    """Find the tokens of a range of characters; check that they decode to the turn's text.

    Args:
        recorder: Holds the text with its tokens.
        ends: Tokens that may end a turn.
        begin: First character.
        answer: The text.
        is_end: Whether the turn ends after it, so that the token that ends it is labelled too.
    """
    end = begin + len(answer)
    inside = [
        number
        for number, (first, last) in enumerate(recorder.offsets)
        if first < end and last > begin and last > first
    ]
    if not inside or inside != list(range(inside[0], inside[-1] + 1)):
        raise DataError(f"found no tokens for {answer[:60]!r}: the tokenizer drops this text")
    ids = recorder.ids[inside[0] : inside[-1] + 1]
    decoded = recorder.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if decoded.strip() != answer:
        raise DataError(
            f"labelled tokens read {decoded[:80]!r} but the assistant says {answer[:80]!r}:"
            " the tokenizer changes the text, or joins it with the text around it"
        )
    if not is_end:
        return inside[0], inside[-1] + 1

    def is_space(at: int) -> bool:
        return recorder.text[slice(*recorder.offsets[at])].isspace()

    return inside[0], extend_over_end(recorder.ids, is_space, inside[-1] + 1, ends)


def pieces(
    parts: Sequence[str | ImageRef], marks: Sequence[str], *, has_first: bool
) -> list[tuple[int, str, bool]]:
    """Return the texts between images, stripped: where each begins, and whether the turn ends then.

    Args:
        parts: Texts and images.
        marks: What is written for each image; they and the texts are joined.
        has_first: Whether the text before the first image is one of them.
    """
    waiting = iter(marks)
    found, at, is_labelled = [], 0, has_first
    for number, part in enumerate(parts):
        if isinstance(part, ImageRef):
            at, is_labelled = at + len(next(waiting)), True
            continue
        if is_labelled and part.strip():
            begin = at + len(part) - len(part.lstrip())
            found.append((begin, part.strip(), number == len(parts) - 1))
        at += len(part)
    return found


def num_images(turns: Sequence[Turn]) -> int:
    """Return how many places of images there are."""
    return sum(len(turn.image_indices) for turn in turns)
