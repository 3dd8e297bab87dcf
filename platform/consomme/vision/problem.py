"""The reject reason and detail of a picture that cannot be decoded."""

from __future__ import annotations

from dataclasses import dataclass

from consomme.base.sample import printable


@dataclass(frozen=True, kw_only=True)
class DecodeProblem:
    """Why a picture could not be decoded."""

    reason: str
    """One of `consomme.base.sample.REJECT_REASONS`."""

    detail: str
    """What was found, printable and on one line."""


class BadImageError(Exception):
    """A picture is bad; `decode` turns this into a `DecodeProblem`.

    Args:
        reason: One of `consomme.base.sample.REJECT_REASONS`.
        detail: What was found; escaped, because codecs quote the bad bytes.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = DecodeProblem(reason=reason, detail=printable(detail))
