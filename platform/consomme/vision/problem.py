"""What is said of a picture that cannot be had: a word and a detail, in one fixed form."""

from __future__ import annotations

from dataclasses import dataclass

from consomme.base.sample import printable


@dataclass(frozen=True, kw_only=True)
class DecodeProblem:
    """Why a picture could not be had."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str
    """What exactly was found, printable and in one line."""


class BadImageError(Exception):
    """A picture is bad; `decode` turns this into a `DecodeProblem`.

    Args:
        reason: A word from `consomme.base.sample.REJECT_REASONS`.
        detail: What was found; codecs quote the bytes they stumbled over, so it is escaped.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = DecodeProblem(reason=reason, detail=printable(detail))
