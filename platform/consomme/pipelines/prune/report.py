"""The report section of a pruned model: strips of its layers, and what each model costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.evaluate.names import shown_figure
from consomme.report import model as page
from consomme.report.guards import guard_tables


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    found = manifest.decisions
    _, *others = found["models"]
    chosen = next(row for row in found["models"] if row["n"] == found["chosen"])
    removed = ", ".join(map(str, chosen["removed"]))
    text = (
        f"The model lacks {found['chosen']} of {found['num_layers']} layers of the language model:"
        f" {removed}, counted from 0."
        if removed
        else f"No layer was removed of {found['num_layers']}."
    )
    rows = [(f"n = {row['n']}", found["num_layers"], row["removed"]) for row in others]
    caption = "Layers that were removed, by the number of them."
    if found["protected"]:
        rows.insert(0, ("protected", found["num_layers"], found["protected"]))
        caption = f"Layers that stay whatever they score; below: {caption.lower()}"
    blocks: list[page.Block] = []
    if rows:
        blocks.append(page.LayerStrip(rows=rows, caption=caption))
    blocks += _scores(manifest)
    blocks += _decisions(chosen)
    blocks.append(_costs(found["models"], found["main_figures"]))
    for number, findings in found.get("guards", {}).items():
        blocks += guard_tables(findings, f"n = {number}: kept of the whole model")
    blocks += _diagnostics(found.get("diagnostics", {}), found["main_figures"])
    for note in found.get("notes", ()):
        blocks.append(page.Paragraph(text=note))
    return page.Section(title=f"Prune: {manifest.name}", lead_text=text, blocks=blocks)


def _scores(manifest: Manifest) -> list[page.Block]:
    scores = manifest.decisions["scores"]
    if not scores:
        return []
    name = manifest.recipe["importance"]["name"]
    return [
        page.LayerShades(
            rows=[(name, scores)],
            caption=(
                "Importance of each layer alone: darker matters more."
                f" Lowest {min(scores):.4g}, highest {max(scores):.4g}."
            ),
        )
    ]


def _decisions(row: Mapping[str, Any]) -> list[page.Block]:
    """Show why the layers of the chosen model went."""
    if not row["steps"]:
        return []
    rows = []
    for number, step in enumerate(row["steps"], 1):
        others = sorted(score for score in step["scores"].values() if score > step["score"])
        listed = ", ".join(map(str, step["removed"]))
        rows.append((number, listed, step["score"], others[0] if others else None))
    return [
        page.Table(
            columns=("step", "layers that went", "their score", "next lowest"),
            rows=rows,
            caption="What scored lowest went; protected layers do not take part.",
        )
    ]


def _costs(models: Sequence[Mapping[str, Any]], main_figures: Mapping[str, str]) -> page.Table:
    figures = list(main_figures.items())
    return page.Table(
        columns=(
            "layers removed", "parameters", "weights MB", "ms per token", "cache bytes per token",
            *(f"{name}: {shown_figure(main)}" for name, main in figures),
        ),
        rows=[
            (
                str(row["n"]),
                row["cost"]["num_parameters"],
                row["cost"]["weight_bytes"] / 1e6,
                None if row["cost"]["token_s"] is None else 1000 * row["cost"]["token_s"],
                row["cost"]["cache_bytes"],
                *(row["figures"][name][main] for name, main in figures),
            )
            for row in models
        ],
        caption=(
            "Time of a generated token, one conversation at a time on the machine of the run, and"
            " the keys and values that a token adds to the cache."
        ),
    )  # fmt: skip


def _diagnostics(found: Mapping[str, Any], main_figures: Mapping[str, str]) -> list[page.Block]:
    blocks: list[page.Block] = []
    if attention := found.get("attention"):
        blocks.append(
            page.LayerShades(
                rows=[("attention to images", attention)],
                caption=(
                    "Share of attention that text tokens give to the images before them, by layer:"
                    f" {min(attention):.1%} to {max(attention):.1%}."
                ),
            )
        )
    if reversion := found.get("reversion"):
        blocks += _reversion(reversion, main_figures)
    if lens := found.get("logit_lens"):
        blocks.append(
            page.Table(
                columns=("layer", *(f"word {k + 1}" for k in range(max(map(len, lens))))),
                rows=[
                    (
                        str(layer),
                        *(f"{word} {share:.0%}" for word, share in words),
                        *[None] * (max(map(len, lens)) - len(words)),
                    )
                    for layer, words in enumerate(lens)
                ],
                caption=(
                    "Words that image tokens are nearest to after each layer, with the share of"
                    " image tokens: what the model would say if it ended there."
                ),
            )
        )
    return blocks


def _reversion(
    found: Sequence[Mapping[str, Mapping[str, float]]], main_figures: Mapping[str, str]
) -> list[page.Block]:
    """Show what each layer's training is worth: the figure without it."""
    whole, *layers = found
    blocks: list[page.Block] = []
    for name, figures in whole.items():
        main = main_figures[name]
        losses = [figures[main] - one[name][main] for one in layers]
        blocks.append(
            page.LayerShades(
                rows=[(f"{name}: {shown_figure(main)}", losses)],
                caption=(
                    f"What is lost of {shown_figure(main)} ({figures[main]:.4g}) if one layer is"
                    f" put back to what it was before training: {min(losses):+.4g} to"
                    f" {max(losses):+.4g}; darker loses more."
                ),
            )
        )
    return blocks
