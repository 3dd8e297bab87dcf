"""Suggest the closest known word for a mistyped one."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return the closest known word, as the end of an error message.

    Args:
        word: What the user wrote.
        choices: The known words.

    Returns:
        `"; did you mean 'x'?"`, or an empty string if nothing is close.
    """
    known = sorted(set(choices))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        lowered = {choice.lower(): choice for choice in known}
        close = [
            lowered[hit]
            for hit in difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
        ]
    return f"; did you mean {close[0]!r}?" if close else ""
