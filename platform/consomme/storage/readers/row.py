"""One row of a shard before it is parsed, and what can be wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass

from consomme.base.errors import DataError
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


class UnreadableShardError(DataError):
    """A shard that cannot be opened: it becomes one reject, `shard_unreadable`, when it is planned.

    Args:
        detail: What was found, and what to do; the shard is named by the reject.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = printable(detail)


def _one() -> int:
    return 1


def _unknown() -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One record of a shard before it is parsed."""

    sample_id: str
    """Id of the reject if the record has none of its own."""

    reference: str
    """Location of its bytes: `shard@offset+length` or `shard#row`."""

    parse: Callable[[], list[Sample | RowError]]
    """Parses the record into its samples, `count()` of them; raises `RowError` if it has none."""

    own_id: Callable[[], str] = _unknown
    """Returns the record's own id, for its reject; empty if it has none, or cannot be parsed."""

    count: Callable[[], int] = _one
    """Returns how many samples the record is: several if it has a list of captions and each is to
    be a sample. Counts captions alone, so a record without its picture counts the same."""

    begin: int = 0
    """Offset in the shard of its bytes."""


@dataclass(frozen=True)
class Lost:
    """What is lost of a shard, beside its records: it becomes one reject."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Gap:
    """Bytes of a shard that belong to no record of their own: no unit reaches across them."""
