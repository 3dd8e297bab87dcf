"""The section of a report about a soup."""

from __future__ import annotations

from consomme.base.manifest import Manifest
from consomme.report import model as page


def _soup(manifest: Manifest) -> page.Section:
    labels = manifest.decisions["labels"]
    blocks: list[page.Block] = []
    for name, result in manifest.decisions["searches"].items():
        items = []
        for step in result["trace"]:
            members = " + ".join(labels[k] for k in step["members"])
            items.append(
                page.SearchStep(
                    candidate=members,
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
    text = f"Best single ingredient {best:.3f}; {scores}, on the held-out set they were chosen by."
    return page.Section(title=f"Soup: {manifest.name}", lead_text=text, blocks=blocks)
