"""Show what a filter would keep before it is run: a table, and a page with pictures at the cut.

One decision is made here: the policy decides as in a run, over all samples, so every number is the
one that the run will give; only the pictures are a few. Nothing is written but the page, outside
all run folders, and Ray is not started.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.curate.keep.policy import KeepPolicy
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.pipelines.filter.columns import ColumnStore
from consomme.pipelines.filter.cuts import AtEdge, AtRandom, CutSample
from consomme.pipelines.filter.decide import decide
from consomme.pipelines.filter.inputs import SOURCE
from consomme.pipelines.filter.join import sidecar_kind
from consomme.pipelines.filter.recipe import FilterRecipe, runs_of
from consomme.pipelines.filter.report import phrase
from consomme.report import model as page
from consomme.report.html import render
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.sidecar import column_names
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.open import open_store
from consomme.storage.units import read_samples
from consomme.vision.thumbnail import thumbnail

# Shapes: N samples of a part.
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
"""What is shown of a policy that takes a fraction, beside the recipe's own."""

MOST_EDGES = 4
"""Cuts shown of one policy."""

MOST_SOURCES = 4
"""Sources in the table on the terminal; the page has all."""

TOKENS = "num_tokens"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the command line shows."""

    name: str
    table: Mapping[str, Any]
    """`{"title": …, "columns": […], "rows": [[…], …]}`."""

    page: str
    """Path of the page."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is said below the table."""
        return (f"  page        {self.page}",)


@dataclass
class _PolicyPreview:
    """What one choice would keep."""

    label: str
    policy: KeepPolicy
    kept: Counter[str] = field(default_factory=Counter)
    """Kept samples by source."""

    cut: str = "–"
    """Where the order is cut; of several rules, each one's cut."""

    tokens: float = 0.0
    stats: Mapping[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, list[CutSample]]] = field(default_factory=list)
    """What is shown: where, and samples in order."""

    @property
    def num_kept(self) -> int:
        return self.kept.total()


def preview(recipe: FilterRecipe) -> Preview:
    """Decide without a run, and draw the page.

    Raises:
        DataError: As the run would raise.
    """
    runs = runs_of(recipe)
    manifests = {url: load_manifest(url) for url in runs.urls}
    kind = sidecar_kind(manifests[runs.scores], "scores")
    has_tokens = TOKENS in column_names(runs.scores, kind)
    policy = KEEP_POLICIES.build(recipe.keep, "keep")
    columns = [*policy.columns, SOURCE, *([TOKENS] if has_tokens else [])]
    with ColumnStore(runs, columns) as walk:
        everything = _PolicyPreview(label="everything", policy=policy)
        looks = [_PolicyPreview(label=label, policy=one) for label, one in _choices(policy)]
        for look in looks:
            _look(walk, look, everything if look is looks[0] else None)
        shown = _pictures(walk, looks)
    table = _table([everything, *looks], has_tokens)
    text = render(_page(recipe, everything, looks, table, shown))
    return Preview(name=recipe.name, table=_short(table), page=_write(recipe, text))


def _choices(policy: KeepPolicy) -> list[tuple[str, KeepPolicy]]:
    """List the policy at several fractions, if it takes the fraction of all samples."""
    own = getattr(policy, "fraction", None)
    if not isinstance(own, float) or not getattr(policy, "sweeps", True):
        return [("as the recipe says", policy)]
    fractions = sorted({*FRACTIONS, own})
    choices: list[tuple[str, KeepPolicy]] = []
    for fraction in fractions:
        label = f"{100 * fraction:.6g} %" + (" (the recipe's)" if fraction == own else "")
        changed: Any = dataclasses.replace(policy, fraction=fraction)  # type: ignore[type-var]
        choices.append((label, changed))
    return choices


def _look(walk: ColumnStore, look: _PolicyPreview, everything: _PolicyPreview | None) -> None:
    """Decide, and walk once more to count and to find the samples at the cuts."""
    decided = decide(look.policy, walk)
    look.stats = decided.stats
    finders: list[AtEdge | AtRandom] = [AtEdge(edge) for edge in decided.edges[:MOST_EDGES]]
    finders = finders or [AtRandom()]
    at = 0
    for _, columns, hash_N in walk.parts():
        mask_N = decided.mask(columns, hash_N)
        _count(look, columns, mask_N)
        if everything is not None:
            _count(everything, columns, np.ones_like(mask_N))
        for finder in finders:
            finder.add(columns, hash_N, mask_N, at)
        at += len(mask_N)
    cut = look.stats.get("cut")
    if decided.edges:
        look.cut = ", ".join(finder.cut for finder in finders if isinstance(finder, AtEdge))
    elif cut is not None:
        look.cut = f"{cut:.6g}"
    look.edges = [(finder.label, finder.seen()) for finder in finders]


def _count(
    look: _PolicyPreview, columns: Mapping[str, NDArray[Any]], mask_N: NDArray[np.bool_]
) -> None:
    look.kept.update(columns[SOURCE][mask_N].tolist())
    if TOKENS in columns:
        look.tokens += float(np.nansum(columns[TOKENS][mask_N], dtype=np.float64))


@dataclass(frozen=True)
class _Shown:
    """What a card shows of a sample."""

    image: bytes
    caption: str
    sample_id: str


def _pictures(walk: ColumnStore, looks: Sequence[_PolicyPreview]) -> dict[int, _Shown]:
    """Read the samples at the cuts, by number; one that cannot be read any more says so."""
    numbers = {seen.number for look in looks for _, some in look.edges for seen in some}
    places = {number: walk.place(number) for number in sorted(numbers)}
    by_unit: dict[str, list[int]] = {}
    for number, (unit, _) in places.items():
        by_unit.setdefault(unit.unit_id, []).append(number)
    shown: dict[int, _Shown] = {}
    for unit_id, some in by_unit.items():
        units = {unit_id: places[some[0]][0]}
        try:
            samples = read_samples(units, [(unit_id, places[number][1]) for number in some])
        except (DataError, OSError) as error:
            # The counts need no pictures; who has scores may have moved the shards.
            shown |= {number: _Shown(b"", f"not readable: {error}", "") for number in some}
            continue
        for number, sample in zip(some, samples, strict=True):
            shown[number] = _Shown(thumbnail(sample.image), sample.caption, sample.sample_id)
    return shown


def _table(looks: Sequence[_PolicyPreview], has_tokens: bool) -> dict[str, Any]:
    """Make the table of all choices; of several sources each has a column, the largest first."""
    everything = looks[0]
    sources = sorted(everything.kept, key=lambda name: (-everything.kept[name], name))
    sources = sources if len(sources) > 1 else []
    rows = []
    for look in looks:
        tokens = f"{look.tokens / look.num_kept:.1f}" if look.num_kept else "–"
        rows.append(
            [
                look.label,
                _share(look.num_kept, everything.num_kept),
                look.cut,
                *([tokens] if has_tokens else []),
                *(_share(look.kept[name], everything.kept[name]) for name in sources),
            ]
        )
    columns = ["keep", "samples", "cut", *(["mean tokens"] if has_tokens else []), *sources]
    return {"title": "", "columns": columns, "rows": rows, "num_sources": len(sources)}


def _share(kept: int, total: int) -> str:
    return f"{kept:,} ({100 * kept / total:.3g} %)" if kept < total else f"{kept:,}"


def _short(table: Mapping[str, Any]) -> dict[str, Any]:
    """Cut the table to what a terminal holds."""
    num_sources = table["num_sources"]
    more = max(0, num_sources - MOST_SOURCES)
    end = len(table["columns"]) - more
    return {
        "title": "What would stay" + (f"; {more} more sources on the page" if more else ""),
        "columns": table["columns"][:end],
        "rows": [row[:end] for row in table["rows"]],
    }


def _page(
    recipe: FilterRecipe,
    everything: _PolicyPreview,
    looks: Sequence[_PolicyPreview],
    table: Mapping[str, Any],
    shown: Mapping[int, _Shown],
) -> page.Report:
    own = [k for k, look in enumerate(looks, 1) if "recipe" in look.label]
    first = page.Section(
        title="What would stay",
        lead_text=f"`{phrase(recipe.keep)}`",
        blocks=[
            page.Table(
                columns=table["columns"],
                rows=table["rows"],
                highlight=own,
                caption="Exact: a run makes the same cut. Tokens are those of the captions that"
                " stay.",
            )
        ],
    )
    return page.Report(
        title=f"Preview of filter {recipe.name}",
        subtitle="nothing has been written but this page",
        facts=[
            ("samples", f"{everything.num_kept:,}"),
            ("sources", f"{len(everything.kept):,}"),
            *(("without a score", f"{n:,}") for n in [looks[0].stats.get("num_missing")] if n),
        ],
        sections=[first, *(_section(look, everything, shown) for look in looks)],
        footer=f"Scores: {recipe.scores}",
    )


def _section(
    look: _PolicyPreview, everything: _PolicyPreview, shown: Mapping[int, _Shown]
) -> page.Section:
    share = 100 * look.num_kept / everything.num_kept
    blocks = [
        page.Gallery(
            items=[_item(seen, shown[seen.number]) for seen in some],
            caption=f"{label[:1].upper()}{label[1:]}.",
        )
        for label, some in look.edges
    ]
    tied = look.stats.get("tie_count") or 0
    text = f"{look.num_kept:,} samples stay, {share:.3g} % of all."
    if tied > 1:
        text += f" {tied:,} have the very score of the cut; hashes of their ids decide among them."
    return page.Section(title=look.label.capitalize(), lead_text=text, blocks=blocks)


def _item(seen: CutSample, shown: _Shown) -> page.GalleryItem:
    return page.GalleryItem(
        image_bytes=shown.image,
        title=shown.caption,
        lines=[line for line in (seen.score, shown.sample_id) if line],
        badge="stays" if seen.stays else "goes",
        badge_kind="good" if seen.stays else "bad",
    )


def _write(recipe: FilterRecipe, text: str) -> str:
    """Write the page below a local root, or into a temporary file, and return its path."""
    # Refuses a name that is no part of a path; opens nothing.
    RunFolder.open(recipe.root, "filter", recipe.name, "preview")
    root = open_store(recipe.root)
    if isinstance(root, LocalStore) and "://" not in root.url:
        root.write(f"previews/{recipe.name}.html", text.encode())
        return os.path.join(root.url, "previews", f"{recipe.name}.html")
    handle, path = tempfile.mkstemp(prefix=f"consomme-{recipe.name}-", suffix=".html")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return path
