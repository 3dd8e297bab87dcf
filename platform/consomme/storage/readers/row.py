"""One row of a shard before it is parsed, and what can be wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass

from consomme.base.sample import Sample, printable


class RowError(Exception):
    """A bad row; the reader turns it into a reject.

    Args:
        reason: One of `consomme.base.sample.REJECT_REASONS`.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = printable(detail)


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row before it is parsed."""

    sample_id: str
    """Id of the reject if the row cannot be parsed."""

    reference: str
    """Location of its bytes: `shard@offset+length` or `shard#row`."""

    parse: Callable[[], Sample]
    """Parses the row; raises `RowError`."""
