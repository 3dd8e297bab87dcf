"""Caption guards: reasons not to believe a text a model wrote.

The one decision: a guard looks at the text alone (and at what was asked), never at the picture, so
it costs microseconds and can only catch failures of *writing*. Whether the caption is true is the
judges' business.
"""

import re
from collections.abc import Iterable, Sequence

GUARD_REASONS = (
    "model_output_empty",
    "model_output_truncated",
    "model_output_template",
    "model_output_echo",
    "model_output_copy",
    "model_output_repetition",
)
"""Every reason `guard` can give, in the order they are tried."""

TEMPLATE_MARKERS = (
    "<image>",
    "<|",
    "|>",
    "</s>",
    "USER:",
    "ASSISTANT:",
    "[INST]",
    "<user>",
    "<assistant>",
)
"""Strings of chat templates that have no place in a caption."""

_MIN_ECHO_WORDS = 3
_LONGEST_WORD = 20


def guard(
    text: str,
    finish_reason: str,
    *,
    prompt: str = "",
    original: str | None = None,
    markers: Sequence[str] = TEMPLATE_MARKERS,
    allow_truncated: bool = False,
    max_repeat_fraction: float = 0.4,
    ngram: int = 4,
    max_run: int = 3,
) -> str | None:
    """Return why a written caption is not to be used, or None if nothing speaks against it.

    Args:
        text: What the model wrote.
        finish_reason: `stop`, or `length` if the token limit cut it off.
        prompt: What was asked, without chat template; a caption that says it again is an echo.
        original: The caption it is to replace; the same words again bring nothing new.
        markers: Template strings that must not appear.
        allow_truncated: Accept texts that hit the token limit.
        max_repeat_fraction: Largest share of n-grams that may be repeats of an earlier one, in [0,
        1].
        ngram: Words per n-gram (characters in scripts written without spaces).
        max_run: How often a phrase may follow itself directly.
    """
    words = _words(text)
    if not words:
        return "model_output_empty"
    if finish_reason == "length" and not allow_truncated:
        return "model_output_truncated"
    if any(marker in text for marker in markers):
        return "model_output_template"
    asked = _words(prompt)
    if len(asked) >= _MIN_ECHO_WORDS and _contains(words, asked):
        return "model_output_echo"
    if original is not None and words == _words(original):
        return "model_output_copy"
    pieces = _pieces(words)
    if (
        repeated_fraction(pieces, ngram) > max_repeat_fraction
        or longest_run(pieces, max_period=8) > max_run
    ):
        return "model_output_repetition"
    return None


def repeated_fraction(pieces: Sequence[str], ngram: int) -> float:
    """Return the share of n-grams that occurred before in the same text; 0 for fewer than two."""
    grams = [tuple(pieces[i : i + ngram]) for i in range(len(pieces) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def longest_run(pieces: Sequence[str], *, max_period: int) -> int:
    """Return how often the most insistent phrase of at most `max_period` pieces follows itself.

    "red red red" gives 3 (period 1), "a cat on a cat on a cat on" gives 3 (period 3).
    """
    longest = min(len(pieces), 1)
    for period in range(1, min(max_period, len(pieces) // 2) + 1):
        matches = 0
        for i in range(period, len(pieces)):
            matches = matches + 1 if pieces[i] == pieces[i - period] else 0
            longest = max(longest, matches // period + 1)
    return longest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _pieces(words: list[str]) -> list[str]:
    """Split very long words into characters: scripts without spaces have no words to repeat."""
    return [p for word in words for p in (word if len(word) > _LONGEST_WORD else (word,))]


def _contains(words: list[str], part: list[str]) -> bool:
    starts: Iterable[int] = (i for i, word in enumerate(words) if word == part[0])
    return any(words[i : i + len(part)] == part for i in starts)
