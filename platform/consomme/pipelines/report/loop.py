"""The report of a whole loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.pipelines.report.rounds import rounds_section
from consomme.pipelines.report.sections import lineage_among, sections_of, versions_of
from consomme.report import model as page
from consomme.report.html import render


def loop_report(
    recipe: Any,
    manifests: Mapping[str, Manifest],
    table: Sequence[Mapping[str, Any]],
    rounds: Mapping[str, Any],
) -> str:
    """Draw the report of a whole loop as one HTML text.

    Args:
        recipe: The loop's recipe.
        manifests: Finished stages by name.
        table: Rows of the final table: label, values, note.
        rounds: What the loop decided about its rounds; empty if it has none.
    """
    return render(loop_page(recipe.name, recipe.description, manifests, table, rounds))


def loop_page(
    name: str,
    description: str,
    manifests: Mapping[str, Manifest],
    table: Sequence[Mapping[str, Any]],
    rounds: Mapping[str, Any],
) -> page.Report:
    """Lay out the report of a loop; see `loop_report`."""
    seconds = sum(m.seconds for m in manifests.values())
    samples = sum(m.counts.get("samples", 0) for m in manifests.values() if m.verb == "score")
    rejected = sum(m.counts.get("rejected", 0) for m in manifests.values() if m.verb == "score")
    facts = [
        ("stages", str(len(manifests))),
        ("stage time", f"{seconds:.0f} s"),
        ("samples scored", f"{samples:,}"),
        ("rejected", f"{rejected:,}"),
    ]
    first = page.Section(
        title="What came out",
        lead_text=description,
        blocks=[summary_block(table)] if table else [],
    )
    return page.Report(
        title=f"consomme loop: {name}",
        subtitle="score, filter, recaption, train, soup and evaluate, as one run",
        facts=facts,
        sections=[
            first,
            *([rounds_section(rounds)] if rounds else []),
            *sections_of(manifests),
            lineage_among(manifests),
        ],
        footer=versions_of(next(iter(manifests.values()))),
    )


def summary_block(table: Sequence[Mapping[str, Any]]) -> page.Table:
    """Return the final table as a block."""
    rows = [
        (row["label"], " | ".join(f"{value:.3g}" for value in row["values"]), row["note"])
        for row in table
    ]
    return page.Table(columns=("figure", "value", "how to read it"), rows=rows)
