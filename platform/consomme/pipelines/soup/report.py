"""The report section of a soup: every step of each search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consomme.base.manifest import Manifest
from consomme.report import model as page


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Return the section of one soup run."""
    labels = manifest.decisions["labels"]
    blocks: list[page.Block] = []
    for name, result in manifest.decisions["searches"].items():
        items = []
        for step in result["trace"]:
            candidate = " + ".join(labels[k] for k in step["members"])
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
    return page.Section(title=f"Soup: {manifest.name}", lead_text=text, blocks=blocks)
