"""The section of a report about an evaluation: figures, and questions with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.base.sample import Sample
from consomme.evaluate.names import benchmark_name, shown_figure
from consomme.pipelines.evaluate.examples import read_examples
from consomme.report import model as page
from consomme.report.samples import shown_turns
from consomme.storage.ledger.run_folder import RunFolder


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    blocks: list[page.Block] = []
    table: Mapping[str, Mapping[str, Mapping[str, float]]] = manifest.decisions["results"]
    examples = read_examples(RunFolder.at(manifest.url).store)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    guided = {
        benchmark_name(node): _guided(node["guidance"])
        for node in manifest.recipe["benchmarks"]
        if node.get("guidance")
    }
    for name in names:
        figures = list(next(row[name] for row in table.values() if name in row))
        # A stored manifest has its keys sorted; runs of earlier versions do not say which is first.
        main = manifest.decisions.get("main_figures", {}).get(name)
        figures.sort(key=lambda figure: figure != main)
        blocks.append(
            page.Table(
                columns=(
                    "model",
                    *map(shown_figure, figures),
                ),
                rows=[
                    (label, *(row[name][figure] for figure in figures))
                    for label, row in table.items()
                    if name in row
                ],
                caption=name + guided.get(name, ""),
            )
        )
        blocks += _comparisons(manifest, name)
        cards = [_card(one) for one in examples if one.meta["benchmark"] == name]
        if cards:
            caption = f"Some questions of {name}, as the models were shown them."
            blocks.append(page.Gallery(items=cards, caption=caption))
    return page.Section(title=f"Evaluation: {manifest.name}", blocks=blocks)


def _guided(guidance: Mapping[str, Any]) -> str:
    """Say how a benchmark guided the model."""
    boxes = (guidance.get("boxes") or {}).get("name", "data")
    return (
        f": guided by regions (CRG), alpha {guidance.get('alpha', 1):g}, boxes of {boxes},"
        f" {guidance.get('mask', 'blackout')} of {guidance.get('area', 'boxes')}"
    )


def _comparisons(manifest: Manifest, name: str) -> list[page.Block]:
    """Show the differences of pairs of models; none of one model, or of earlier versions."""
    found = [c for c in manifest.decisions.get("comparisons", ()) if c["benchmark"] == name]
    if not found:
        return []
    rows: list[Sequence[page.Cell]] = [
        (
            " - ".join(reversed(one["models"])),
            f"{one['difference']:+.3f}",
            f"{one['low']:+.3f} to {one['high']:+.3f}",
            f"{one['p_value']:.2g}",
            f"{one['resolvable']:.3f}",
        )
        for one in found
    ]
    columns = ("models", "difference", "95 % interval", "p", "smallest that could be shown")
    return [page.Table(columns=columns, rows=rows, caption=f"{name}: pairs of models.")]


def _card(question: Sample) -> page.GalleryItem:
    """Show a question with all images in their places, and what each model answered."""
    answers: Mapping[str, str] = question.meta["answers"]
    verdicts: Sequence[float] = list(question.meta["verdicts"].values())
    num_right = sum(verdict >= 1 for verdict in verdicts)
    if len(verdicts) == 1:
        badge = "right" if num_right else ("partly right" if any(verdicts) else "wrong")
    else:
        badge = f"{num_right} of {len(verdicts)} right"
    tone: page.Tone = "neutral"
    if num_right == len(verdicts):
        tone = "good"
    elif not any(verdicts):
        tone = "bad"
    return page.GalleryItem(
        title=question.turns[-1].text,
        turns=shown_turns(question),
        lines=[
            f"expected: {question.meta['expected']}",
            *(f"{label}: {answer}" for label, answer in answers.items()),
        ],
        badge=badge,
        badge_kind=tone,
    )
