"""The report section of `filter`: what was kept and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.manifest import Manifest
from consomme.curate.keep.ranking import RankingPolicy
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.datasets.web_noise import CLEAN
from consomme.pipelines.filter.columns import ColumnStore
from consomme.pipelines.filter.inputs import InputRuns
from consomme.pipelines.filter.join import sidecar_kind
from consomme.pipelines.filter.missing import describe_missing
from consomme.report import model as page
from consomme.report.samples import sample_card
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.plan import unpack_rows
from consomme.storage.sidecar import ID_HASH, column_names
from consomme.storage.units import read_samples
from consomme.storage.view import View

NUM_SHOWN = 24


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Show the counts, the cut, the truth if it is known, and samples in order of score."""
    decisions = manifest.decisions
    keep = manifest.recipe["keep"]
    text = (
        f"`{format_strategy(keep)}` kept {manifest.counts['kept']:,}"
        f" of {manifest.counts['samples']:,} samples"
        + (f"; the cut is {decisions['cut']:.4g}." if decisions.get("cut") is not None else ".")
    )
    # Runs of earlier versions did not count them.
    text += f" {describe_missing(decisions.get('missing', {}))}".rstrip()
    blocks: list[page.Block] = []
    if "auc_by_kind" in decisions:
        by = decisions["auc_by_kind"]
        rows = [
            (
                kind,
                total,
                total - kept,
                by["perplexity"].get(kind),
                by["image_gain"].get(kind),
            )
            for kind, (kept, total) in decisions["kept_by_kind"].items()
        ]
        blocks.append(
            page.Table(
                columns=("kind", "samples", "dropped", "AUC perplexity", "AUC image gain"),
                rows=rows,
                caption="What was noise and what was not. An AUC of 0.5 is blind, 1 is perfect.",
            )
        )
    blocks.append(_quantile_gallery(manifest))
    return page.Section(title=f"Filter: {manifest.name}", lead_text=text, blocks=blocks)


def format_strategy(node: Mapping[str, Any]) -> str:
    """Format a strategy as `name (key: value, …)`."""
    options = ", ".join(
        f"{key}: {_format_value(value)}" for key, value in node.items() if key != "name"
    )
    return f"{node['name']} ({options})" if options else str(node["name"])


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return format_strategy(value) if "name" in value else str(dict(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format_value, value))}]"
    return str(value)


def _quantile_gallery(manifest: Manifest) -> page.Gallery:
    """Samples at even quantiles of the deciding score, kept and dropped."""
    recipe = manifest.recipe
    runs = InputRuns(
        scores=recipe["scores"],
        # Older runs have the key `beside`.
        columns_from=recipe.get("columns_from", recipe.get("beside", {})),
        views=recipe.get("views", {}),
    )
    policy = KEEP_POLICIES.build(recipe["keep"], "keep")
    label = recipe.get("noise_label")
    scores = load_manifest(runs.scores)
    known = column_names(runs.scores, sidecar_kind(scores, "scores"))
    extra = [name for name in ("perplexity",) if name in known]
    with ColumnStore(runs, [*policy.columns, *extra, *([label] if label else [])]) as store:
        columns = {name: store.whole(name) for name in dict.fromkeys([*policy.columns, *extra])}
        column, value_N = _order(policy, columns, store.whole(ID_HASH))
        hash_N = store.whole(ID_HASH)
        scored = np.flatnonzero(~np.isnan(value_N))
        order = scored[np.lexsort((hash_N[scored], value_N[scored]))]
        picked = [
            int(order[round(q * (len(order) - 1))])
            for q in np.linspace(0, 1, min(NUM_SHOWN, len(order)))
        ]
        places = [store.place(number) for number in picked]
        truth = [store.whole(label)[number] or CLEAN for number in picked] if label else []
    units = {unit.unit_id: unit for unit, _ in places}
    kept = {
        (unit.unit_id, row)
        for unit, bitmap in View.iter_entries(manifest.url)
        if unit.unit_id in units
        for row in unpack_rows(unit, bitmap)
    }
    wanted = [(unit.unit_id, row) for unit, row in places]
    items = []
    for k, (number, place, sample) in enumerate(
        zip(picked, wanted, read_samples(units, wanted), strict=True)
    ):
        lines = [f"{column} {value_N[number]:.4g}"] if column else []
        if truth:
            lines.append(f"truth: {truth[k]}")
        is_kept = place in kept
        items.append(
            sample_card(
                sample,
                lines=lines,
                badge="kept" if is_kept else "dropped",
                badge_kind="good" if is_kept else "bad",
            )
        )
    caption = f"Samples at even steps through {column}, lowest first."
    return page.Gallery(items=items, caption=caption if column else "Samples at random.")


def _order(
    policy: Any, columns: Mapping[str, NDArray[Any]], hash_N: NDArray[np.uint64]
) -> tuple[str, NDArray[Any]]:
    """Return name and values to order samples by: the ranking, any numeric column, or hashes."""
    if isinstance(policy, RankingPolicy):
        return policy.label, policy.values(columns)
    for name, value_N in columns.items():
        if value_N.ndim == 1 and value_N.dtype.kind == "f":
            return name, value_N
    return "", hash_N.astype(np.float64)
