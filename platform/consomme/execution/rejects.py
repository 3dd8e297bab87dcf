"""Fail a run in which too many samples were rejected."""

from __future__ import annotations

from collections.abc import Mapping

from consomme.base.errors import DataError
from consomme.storage.ledger.commits import reject_reasons


def top_reasons(counts: Mapping[str, int]) -> str:
    """Name the most frequent reject reasons, for a message."""
    return ", ".join(f"{reason} {number:,}" for reason, number in reject_reasons(counts)[:5])


def check_rejects(counts: Mapping[str, int], max_reject_fraction: float, where: str) -> None:
    """Fail a run in which too many samples were rejected.

    Args:
        counts: Totals with `samples`, `rejected` and `rejected/<reason>`.
        max_reject_fraction: Largest share allowed, in [0, 1].
        where: The run folder, for the message.

    Raises:
        DataError: The share is larger; names the most frequent reasons.
    """
    rejected = counts.get("rejected", 0)
    total = counts.get("samples", 0) + rejected
    if total == 0:
        raise DataError(f"{where}: the inputs hold no samples at all")
    if rejected / total > max_reject_fraction:
        raise DataError(
            f"{where}: {rejected:,} of {total:,} samples were rejected ({top_reasons(counts)}),"
            " more than"
            f" max_reject_fraction={max_reject_fraction}; look into rejects/, mend the data or"
            " raise the limit"
        )
