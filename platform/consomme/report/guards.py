"""The table of guards: what tuned models have kept of the model that they were tuned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.report import model as page


def guard_tables(findings: Sequence[Mapping[str, Any]], caption: str) -> list[page.Block]:
    """Return the table of a model's guards; none without guards.

    Args:
        findings: `GuardFinding.plain` of each guard.
        caption: Of the table.
    """
    if not findings:
        return []
    rows = [
        (
            one["benchmark"],
            one["figure"].removesuffix("_fraction").replace("_", " "),
            one["base"],
            one["tuned"],
            f"{one['difference']:+.4f}",
            f"{one['low']:+.4f} to {one['high']:+.4f}",
            f"{one['resolvable']:.4f}",
            f"{one['at_most_worse']:g}",
            "kept" if one["passes"] else "lost",
        )
        for one in findings
    ]
    columns = (
        *("guard", "figure", "before", "after", "difference per question", "95 % interval"),
        *("smallest that could be shown", "may be worse by", ""),
    )
    return [page.Table(columns=columns, rows=rows, caption=caption)]
