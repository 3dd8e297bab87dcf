"""Preview what would be mixed: whether the models fit, and how far each moved which way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.execution.previews import write_preview
from consomme.pipelines.soup.from_sweep import with_models
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.report import model as page
from consomme.report.html import render
from consomme.soup.doctor import LayerMoves, moves, summary
from consomme.soup.mixing import ModelMix
from consomme.soup.opening import check_base, open_models

MAX_SHOWN = 12
"""Layers on the terminal; the page has all of them."""


@dataclass(frozen=True, kw_only=True)
class SoupPreview:
    """The preview as the command line shows it."""

    name: str
    table: Mapping[str, Any]
    """`{"title": …, "columns": […], "rows": [[…], …]}`."""

    page: str
    """Path of the page."""

    what: str
    """What the figures mean."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines below the table."""
        return (f"  in short    {self.what}", f"  page        {self.page}")


def preview(recipe: SoupRecipe) -> SoupPreview:
    """Compare the ingredients, and write the page.

    Raises:
        CheckpointError: They cannot be mixed.
    """
    recipe = with_models(recipe)
    for label, model in recipe.models.items():
        check_base(model, recipe.base, label)
    models = open_models(recipe.models, recipe.base)
    opened, base = models.ingredients, models.base
    mix = ModelMix.of(opened, base=base)
    found = moves(mix)
    labels = [one.name for one, _ in mix.used]
    origin = "the base" if base else labels[0]
    columns = ["layer", *labels, "cosine", "least cosine", "signs that disagree"]
    rows = [_row(one) for one in found]
    shown = rows
    if len(rows) > MAX_SHOWN:
        step = (len(rows) - 1) / (MAX_SHOWN - 1)
        shown = [rows[round(k * step)] for k in range(MAX_SHOWN)]
    title = f"How far each model moved from {origin}, relative to it"
    what = summary(found)
    report = page.Report(
        title=f"Preview of soup {recipe.name}",
        subtitle="nothing has been written but this page",
        facts=[("models", str(len(opened))), ("values", f"{found[-1].num_values:,}")],
        sections=[
            page.Section(
                title=title,
                lead_text=f"They can be mixed: tensors, configuration, tokens and images are alike."
                f" Over all weights, {what}.",
                blocks=[page.Table(columns=tuple(columns), rows=rows)],
            )
        ],
        footer=f"Models: {', '.join(recipe.models.values())}",
    )
    return SoupPreview(
        name=recipe.name,
        table={"title": title, "columns": columns, "rows": shown},
        page=write_preview("soup", recipe.root, recipe.name, render(report)),
        what=what,
    )


def _row(one: LayerMoves) -> Sequence[Any]:
    return [
        one.layer,
        *(f"{moved:.4f}" for moved in one.moved_M),
        "" if one.cosine is None else f"{one.cosine:.3f}",
        "" if one.least_cosine is None else f"{one.least_cosine:.3f}",
        f"{one.conflict_fraction:.1%}",
    ]
