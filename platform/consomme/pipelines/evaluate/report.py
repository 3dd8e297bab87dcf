"""The section of a report about an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consomme.base.manifest import Manifest
from consomme.report import model as page


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    blocks: list[page.Block] = []
    table: Mapping[str, Mapping[str, Mapping[str, float]]] = manifest.decisions["results"]
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    for name in names:
        figures = list(next(row[name] for row in table.values() if name in row))
        blocks.append(
            page.Table(
                columns=(
                    "model",
                    *(f.removesuffix("_fraction").replace("_", " ") for f in figures),
                ),
                rows=[
                    (label, *(row[name][figure] for figure in figures))
                    for label, row in table.items()
                    if name in row
                ],
                caption=name,
            )
        )
    return page.Section(title=f"Evaluation: {manifest.name}", blocks=blocks)
