"""The section of a loop's report about its rounds: figures by round, and why the loop ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consomme.report import model as page
from consomme.report.guards import guard_tables


def rounds_section(rounds: Mapping[str, Any]) -> page.Section:
    """Draw the decisions of a loop about its rounds.

    Args:
        rounds: `decisions["rounds"]` of the loop's manifest.
    """
    num = rounds["num"]
    text = f"{num} {'round was' if num == 1 else 'rounds were'} run."
    if "best" in rounds:
        values = ", ".join("–" if v is None else f"{v:.4g}" for v in rounds["values"])
        best = f"round {rounds['best']}" if rounds["best"] else "the start"
        text = (
            f"{num} {'round' if num == 1 else 'rounds'}; ended because: {rounds['ended']}."
            f" `{rounds['metric']}` went {values} (the start first); {best} is the best."
        )
    blocks: list[page.Block] = []
    for number, findings in enumerate(rounds.get("guards", ()), 1):
        blocks += guard_tables(findings, f"Round {number}: what its model has kept of the start.")
    rows = rounds["table"]
    if rows:
        heads = ("figure", "start", *(f"round {n}" for n in range(1, num + 1)))
        cells = [(row["label"], *row["values"]) for row in rows]
        notes = [f"{row['label']}: {row['note']}" for row in rows if row["note"]]
        blocks.append(page.Table(columns=heads, rows=cells, caption="; ".join(notes)))
        series = {
            row["label"]: [(float(n), v) for n, v in enumerate(row["values"]) if v is not None]
            for row in rows
        }
        blocks.append(page.Curves(series=series, x_label="round, 0 is the start", y_label="figure"))
    return page.Section(title="Rounds", lead_text=text, blocks=blocks)
