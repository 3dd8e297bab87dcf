"""Preview what a filter would keep: a table, and a page with pictures at the cut.

The policy decides over all samples, as in a run, so every number is the one that the run will
give; only the pictures are a sample. Nothing is written except the page, outside all run folders,
and Ray is not started.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.curate.keep.policy import KeepPolicy
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.execution.previews import write_preview
from consomme.pipelines.filter.columns import ColumnStore
from consomme.pipelines.filter.cuts import BoundarySamples, CutSample, RandomSamples
from consomme.pipelines.filter.decide import decide
from consomme.pipelines.filter.inputs import SOURCE
from consomme.pipelines.filter.join import sidecar_kind
from consomme.pipelines.filter.missing import MissingValues
from consomme.pipelines.filter.recipe import FilterRecipe, runs_of
from consomme.pipelines.filter.report import format_strategy
from consomme.report import model as page
from consomme.report.html import render
from consomme.report.samples import sample_card
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.sidecar import column_names
from consomme.storage.units import read_samples

# Shapes: N samples of a chunk.
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
"""Fractions shown of a policy that takes one, in addition to the recipe's own."""

MAX_BOUNDARIES = 4
"""Maximum number of cuts shown per policy."""

MAX_SOURCES = 4
"""Maximum number of sources in the terminal's table; the page has all."""

TOKENS = "num_tokens"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The preview as the command line shows it."""

    name: str
    table: Mapping[str, Any]
    """`{"title": …, "columns": […], "rows": [[…], …]}`."""

    page: str
    """Path of the page."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines below the table."""
        return (f"  page        {self.page}",)


@dataclass
class _PolicyPreview:
    """What one variant of the policy would keep."""

    label: str
    policy: KeepPolicy
    kept: Counter[str] = field(default_factory=Counter)
    """Kept samples by source."""

    cut: str = "–"
    """Value at which the order is cut; with several rules, each one's cut."""

    tokens: float = 0.0
    stats: Mapping[str, Any] = field(default_factory=dict)
    missing: MissingValues = field(default_factory=MissingValues)
    galleries: list[tuple[str, list[CutSample]]] = field(default_factory=list)
    """(caption, samples in order) of each gallery."""

    @property
    def num_kept(self) -> int:
        return self.kept.total()


def preview(recipe: FilterRecipe) -> Preview:
    """Decide without a run, and write the page.

    Raises:
        DataError: As in the run.
    """
    runs = runs_of(recipe)
    manifests = {url: load_manifest(url) for url in runs.urls}
    kind = sidecar_kind(manifests[runs.scores], "scores")
    has_tokens = TOKENS in column_names(runs.scores, kind)
    policy = KEEP_POLICIES.build(recipe.keep, "keep")
    columns = [*policy.columns, SOURCE, *([TOKENS] if has_tokens else [])]
    with ColumnStore(runs, columns) as store:
        everything = _PolicyPreview(label="everything", policy=policy)
        variants = [_PolicyPreview(label=label, policy=one) for label, one in _variants(policy)]
        for variant in variants:
            _decide(store, variant, everything if variant is variants[0] else None)
        cards = _load_cards(store, variants)
    table = _table([everything, *variants], has_tokens)
    text = render(_page(recipe, everything, variants, table, cards))
    return Preview(
        name=recipe.name,
        table=_short(table),
        page=write_preview("filter", recipe.root, recipe.name, text),
    )


def _variants(policy: KeepPolicy) -> list[tuple[str, KeepPolicy]]:
    """Return the policy at several fractions, if it takes a fraction of all samples."""
    own = getattr(policy, "fraction", None)
    if not isinstance(own, float) or not getattr(policy, "preview_fractions", True):
        return [("as the recipe says", policy)]
    fractions = sorted({*FRACTIONS, own})
    variants: list[tuple[str, KeepPolicy]] = []
    for fraction in fractions:
        label = f"{100 * fraction:.6g} %" + (" (the recipe's)" if fraction == own else "")
        changed: Any = dataclasses.replace(policy, fraction=fraction)  # type: ignore[type-var]
        variants.append((label, changed))
    return variants


def _decide(store: ColumnStore, variant: _PolicyPreview, everything: _PolicyPreview | None) -> None:
    """Decide, then make one more pass to count and to collect the samples at the cuts."""
    decided = decide(variant.policy, store)
    variant.stats = decided.stats
    collectors: list[BoundarySamples | RandomSamples] = [
        BoundarySamples(boundary) for boundary in decided.boundaries[:MAX_BOUNDARIES]
    ]
    collectors = collectors or [RandomSamples()]
    at = 0
    for _, columns, hash_N in store.parts():
        mask_N = decided.mask(columns, hash_N)
        _count(variant, columns, mask_N)
        variant.missing.add({name: columns[name] for name in variant.policy.columns}, mask_N)
        if everything is not None:
            _count(everything, columns, np.ones_like(mask_N))
        for collector in collectors:
            collector.add(columns, hash_N, mask_N, at)
        at += len(mask_N)
    cut = variant.stats.get("cut")
    if decided.boundaries:
        variant.cut = ", ".join(c.cut for c in collectors if isinstance(c, BoundarySamples))
    elif cut is not None:
        variant.cut = f"{cut:.6g}"
    variant.galleries = [(collector.label, collector.samples()) for collector in collectors]


def _count(
    variant: _PolicyPreview, columns: Mapping[str, NDArray[Any]], mask_N: NDArray[np.bool_]
) -> None:
    variant.kept.update(columns[SOURCE][mask_N].tolist())
    if TOKENS in columns:
        variant.tokens += float(np.nansum(columns[TOKENS][mask_N], dtype=np.float64))


def _load_cards(
    store: ColumnStore, variants: Sequence[_PolicyPreview]
) -> dict[int, page.GalleryItem]:
    """Make a card of each sample of all galleries, by number; an unreadable one gets a message."""
    numbers = {
        sample.number
        for variant in variants
        for _, samples in variant.galleries
        for sample in samples
    }
    places = {number: store.place(number) for number in sorted(numbers)}
    by_unit: dict[str, list[int]] = {}
    for number, (unit, _) in places.items():
        by_unit.setdefault(unit.unit_id, []).append(number)
    cards: dict[int, page.GalleryItem] = {}
    for unit_id, in_unit in by_unit.items():
        units = {unit_id: places[in_unit[0]][0]}
        try:
            samples = read_samples(units, [(unit_id, places[number][1]) for number in in_unit])
        except (DataError, OSError) as error:
            # The counts need no pictures, and the shards may have been moved since scoring.
            unreadable = page.GalleryItem(title=f"not readable: {error}")
            cards |= dict.fromkeys(in_unit, unreadable)
            continue
        for number, sample in zip(in_unit, samples, strict=True):
            cards[number] = sample_card(sample, lines=(sample.sample_id,))
    return cards


def _table(variants: Sequence[_PolicyPreview], has_tokens: bool) -> dict[str, Any]:
    """Make the table of all variants; several sources get a column each, the largest first."""
    everything = variants[0]
    sources = sorted(everything.kept, key=lambda name: (-everything.kept[name], name))
    sources = sources if len(sources) > 1 else []
    rows = []
    for variant in variants:
        tokens = f"{variant.tokens / variant.num_kept:.1f}" if variant.num_kept else "–"
        rows.append(
            [
                variant.label,
                _share(variant.num_kept, everything.num_kept),
                variant.cut,
                *([tokens] if has_tokens else []),
                *(_share(variant.kept[name], everything.kept[name]) for name in sources),
            ]
        )
    columns = ["keep", "samples", "cut", *(["mean tokens"] if has_tokens else []), *sources]
    return {"title": "", "columns": columns, "rows": rows, "num_sources": len(sources)}


def _share(kept: int, total: int) -> str:
    return f"{kept:,} ({100 * kept / total:.3g} %)" if kept < total else f"{kept:,}"


def _short(table: Mapping[str, Any]) -> dict[str, Any]:
    """Cut the table to the width of a terminal."""
    num_sources = table["num_sources"]
    more = max(0, num_sources - MAX_SOURCES)
    end = len(table["columns"]) - more
    return {
        "title": "What would be kept" + (f"; {more} more sources on the page" if more else ""),
        "columns": table["columns"][:end],
        "rows": [row[:end] for row in table["rows"]],
    }


def _page(
    recipe: FilterRecipe,
    everything: _PolicyPreview,
    variants: Sequence[_PolicyPreview],
    table: Mapping[str, Any],
    cards: Mapping[int, page.GalleryItem],
) -> page.Report:
    own = [k for k, variant in enumerate(variants, 1) if "recipe" in variant.label]
    first = page.Section(
        title="What would be kept",
        lead_text=f"`{format_strategy(recipe.keep)}`",
        blocks=[
            page.Table(
                columns=table["columns"],
                rows=table["rows"],
                highlight=own,
                caption="Exact: a run makes the same cut. Tokens are those of the kept captions.",
            )
        ],
    )
    return page.Report(
        title=f"Preview of filter {recipe.name}",
        subtitle="nothing has been written but this page",
        facts=[
            ("samples", f"{everything.num_kept:,}"),
            ("sources", f"{len(everything.kept):,}"),
            *(
                (f"without {column}", f"{total:,}")
                for column, (_, total) in variants[0].missing.counts.items()
            ),
        ],
        sections=[first, *(_section(variant, everything, cards) for variant in variants)],
        footer=f"Scores: {recipe.scores}",
    )


def _section(
    variant: _PolicyPreview, everything: _PolicyPreview, cards: Mapping[int, page.GalleryItem]
) -> page.Section:
    share = 100 * variant.num_kept / everything.num_kept
    blocks = [
        page.Gallery(
            items=[_item(sample, cards[sample.number]) for sample in samples],
            caption=f"{label[:1].upper()}{label[1:]}.",
        )
        for label, samples in variant.galleries
    ]
    tied = variant.stats.get("tie_count") or 0
    text = f"{variant.num_kept:,} samples are kept, {share:.3g} % of all."
    if tied > 1:
        text += (
            f" {tied:,} have exactly the score of the cut; hashes of their ids decide among them."
        )
    if variant.missing.counts:
        text += f" {variant.missing.text}"
    return page.Section(title=variant.label.capitalize(), lead_text=text, blocks=blocks)


def _item(sample: CutSample, card: page.GalleryItem) -> page.GalleryItem:
    return dataclasses.replace(
        card,
        lines=[line for line in (sample.score, *card.lines) if line],
        badge="kept" if sample.is_kept else "dropped",
        badge_kind="good" if sample.is_kept else "bad",
    )
