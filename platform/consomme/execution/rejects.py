"""Fail a run in which too many samples were rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from consomme.base.errors import DataError
from consomme.storage.ledger.commits import reject_reasons
from consomme.storage.reading import Reading

UNREADABLE = "rejected/shard_unreadable"
"""Count of shards that cannot be opened, each of which is one reject."""


def top_reasons(counts: Mapping[str, int]) -> str:
    """Name the most frequent reject reasons, for a message."""
    return ", ".join(f"{reason} {number:,}" for reason, number in reject_reasons(counts)[:5])


def check_rejects(
    counts: Mapping[str, int],
    max_reject_fraction: float,
    where: str,
    reading: Reading | None = None,
    num_shards: int = 0,
) -> None:
    """Fail a run in which too many samples were rejected, or too many shards cannot be opened.

    A shard that cannot be opened is one reject, however many samples it held; so the share of such
    shards has to keep the limit, too.

    Args:
        counts: Totals with `samples`, `rejected` and `rejected/<reason>`.
        max_reject_fraction: Largest share allowed, in [0, 1].
        where: The run folder, for the message.
        reading: Of the recipe; what it allows does not count.
        num_shards: All shards of the run; 0 if they are not known.

    Raises:
        DataError: The share is larger; names the most frequent reasons.
    """
    reading = reading or Reading()
    rejected = reading.unexpected(counts)
    total = counts.get("samples", 0) + rejected
    if total == 0:
        expected = counts.get("rejected", 0)
        found = f": all {expected:,} were rejected ({top_reasons(counts)})" if expected else ""
        raise DataError(f"{where}: the inputs hold no samples at all{found}")
    unreadable = 0 if "shard_unreadable" in reading.allow else counts.get(UNREADABLE, 0)
    if num_shards and unreadable > max_reject_fraction * num_shards:
        raise DataError(
            f"{where}: {unreadable:,} of {num_shards:,} shards cannot be opened, more than"
            f" max_reject_fraction={max_reject_fraction}; see rejects/ for their names, bring them"
            " again, or raise the limit"
        )
    if rejected / total > max_reject_fraction:
        raise DataError(
            f"{where}: {rejected:,} of {total:,} samples were rejected ({top_reasons(counts)}),"
            " more than"
            f" max_reject_fraction={max_reject_fraction}; look into rejects/, mend the data or"
            " raise the limit"
        )


ALLOWED = "allowed/"
"""Begins the counts of rejects that a source of a training run allows, by reason."""


def without_allowed(counts: Mapping[str, int]) -> Counter[str]:
    """Return counts without the rejects that were counted as allowed."""
    left = Counter(dict(counts))
    for key, number in counts.items():
        if key.startswith(ALLOWED):
            left["rejected"] -= number
            left["rejected/" + key.removeprefix(ALLOWED)] -= number
    return Counter({key: number for key, number in left.items() if number and ALLOWED not in key})
