"""The report section of a soup: every step of each search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.report import model as page
from consomme.report.guards import guard_tables


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Return the section of one soup run."""
    labels = manifest.decisions["labels"]
    if "searches" not in manifest.decisions:
        return _mixed(manifest)
    blocks: list[page.Block] = []
    for name, result in manifest.decisions["searches"].items():
        items = []
        for step in result["trace"]:
            candidate = " + ".join(labels[k] for k in step["members"])
            if step.get("fails_guards"):
                candidate += " (lost more than the guards allow)"
            items.append(
                page.SearchStep(
                    candidate=candidate,
                    score=step["score"],
                    best_before=step["best_before"],
                    accepted=step["accepted"],
                )
            )
        blocks.append(page.Steps(items=items, score_label="held-out score", caption=name))
    singles = manifest.decisions["singles"]
    best = max(singles.values()) if singles else float("nan")
    scores = ", ".join(
        f"{name} {result['score']:.3f}" for name, result in manifest.decisions["searches"].items()
    )
    text = f"Best single ingredient {best:.3f}; {scores}, on the held-out set used for the choice."
    for name, result in manifest.decisions["searches"].items():
        blocks += guard_tables(result.get("guards", ()), f"{name}: kept of the base model")
    blocks += _reported(manifest.decisions)
    return page.Section(title=f"Soup: {manifest.name}", lead_text=text, blocks=blocks)


def _mixed(manifest: Manifest) -> page.Section:
    """Return the section of a soup that nothing was measured for."""
    decisions = manifest.decisions
    method = ", ".join(f"{key} {value}" for key, value in decisions["method"].items())
    return page.Section(
        title=f"Soup: {manifest.name}",
        lead_text=f"All ingredients, mixed by {method}. Nothing was measured.",
        blocks=[
            page.Table(
                columns=("ingredient", "share"),
                rows=[(label, f"{share:.4f}") for label, share in decisions["shares"].items()],
            )
        ],
    )


def _reported(decisions: Mapping[str, Any]) -> list[page.Block]:
    """Tabulate the main figures of the benchmarks that chose nothing; none without any."""
    table, main = decisions.get("report", {}), decisions.get("main_figures", {})
    if not table:
        return []
    return [
        page.Table(
            columns=("model", *(f"{name}: {figure}" for name, figure in main.items())),
            rows=[
                (label, *(row[name][figure] for name, figure in main.items()))
                for label, row in table.items()
            ],
            caption="Benchmarks that did not choose.",
        )
    ]
