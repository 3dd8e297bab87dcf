"""The report section of `tag`: counts, distributions, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from consomme.base.manifest import Manifest
from consomme.curate.tag.registry import TAGGERS
from consomme.pipelines.tag.stage import TAGS
from consomme.report import model as page
from consomme.report.samples import sample_card
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import read_columns
from consomme.storage.units import read_unit

MAX_VALUES = 12
EXAMPLES = 2
NUM_BINS = 40


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Show every numeric and text column, and example pictures for the values of text columns."""
    nodes = manifest.recipe["taggers"]
    kinds = {
        name: kind
        for node in nodes
        for name, kind in TAGGERS.build(node, "taggers").columns.items()
        if not pa.types.is_list(kind)
    }
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind)]
    table = read_columns(manifest.url, list(kinds), TAGS) if kinds else None
    text = (
        f"{manifest.counts['samples']:,} samples were tagged by"
        f" {', '.join(str(node['name']) for node in nodes)};"
        f" {manifest.counts.get('rejected', 0):,} were rejected."
    )
    blocks: list[page.Block] = []
    for name in texts:
        blocks.append(_frequencies(name, manifest.counts))
    if table is not None:
        blocks += [
            block
            for name in kinds
            if name not in texts
            for block in _distribution(name, table[name].to_pylist())
        ]
        blocks += [_examples(manifest, table, name) for name in texts]
    return page.Section(title=f"Tags: {manifest.name}", lead_text=text, blocks=blocks)


def _ranked(column: str, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    values = {
        name.removeprefix(f"{column}/"): number
        for name, number in counts.items()
        if name.startswith(f"{column}/")
    }
    return sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))


def _frequencies(column: str, counts: Mapping[str, int]) -> page.Table:
    ranked = _ranked(column, counts)
    rows: list[Sequence[page.Cell]] = [
        (value or "(none)", number) for value, number in ranked[:MAX_VALUES]
    ]
    rest = ranked[MAX_VALUES:]
    if rest:
        rows.append((f"{len(rest)} more", sum(number for _, number in rest)))
    return page.Table(columns=(column, "samples"), rows=rows)


def _distribution(column: str, values: Sequence[Any]) -> list[page.Histogram]:
    """Return a histogram between the 0.2 % and 99.8 % quantiles; none if there is no value."""
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return []
    low, high = np.quantile(known, (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)
    counts = np.histogram(known.clip(edges[0], edges[-1]), edges)[0]
    missing = len(values) - len(known)
    return [
        page.Histogram(
            series={"all samples": counts.tolist()},
            edges=edges.tolist(),
            x_label=column,
            caption=f"{missing:,} samples have no value." if missing else "",
        )
    ]


def _examples(manifest: Manifest, table: pa.Table, column: str) -> page.Gallery:
    """Show the first samples of the most frequent values."""
    values = table[column].to_pylist()
    chosen: list[int] = []
    for value, _ in _ranked(column, manifest.counts)[:MAX_VALUES]:
        chosen += [k for k, found in enumerate(values) if (found or "") == value][:EXAMPLES]
    rows = table.select(["unit_id", "row"]).take(chosen).to_pylist()
    wanted = {row["unit_id"] for row in rows}
    units = {
        record.unit_id: dict(read_unit(record.unit)[0])
        for record in RunFolder.at(manifest.url).iter_commits()
        if record.unit_id in wanted
    }
    items = []
    for k, row in zip(chosen, rows, strict=True):
        sample = units[row["unit_id"]][row["row"]]
        badge = f"{column}: {values[k] or '(none)'}"
        items.append(sample_card(sample, lines=(sample.sample_id,), badge=badge))
    return page.Gallery(items=items, caption=f"The first samples of each {column}.")
