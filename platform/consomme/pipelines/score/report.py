"""The section of a report about scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from consomme.base.manifest import Manifest
from consomme.datasets.web_noise import CLEAN
from consomme.report import model as page
from consomme.storage.ledger.commits import reject_reasons
from consomme.storage.sidecar import read_columns


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest, every_run) for manifest in runs]


def _section(manifest: Manifest, every_run: Mapping[str, Manifest]) -> page.Section:
    labels = manifest.recipe.get("labels", [])
    has_noise = "noise" in labels
    guided = _guided(manifest)
    named = [name for name, _, _ in guided]
    columns = ["perplexity", "image_gain", *named, *(["noise"] if has_noise else [])]
    table = read_columns(manifest.url, columns)
    noise = table["noise"].to_pylist() if has_noise else [CLEAN] * table.num_rows
    groups = {
        "clean": np.array([kind in (None, CLEAN) for kind in noise]),
        "noise": np.array([kind not in (None, CLEAN) for kind in noise]),
    }
    # Labels that find no damage divide nothing.
    has_noise = bool(groups["noise"].any())
    if not has_noise:
        groups = {"all samples": groups["clean"]}
    # Only of filters that choose from these scores: one that reads them beside others names them
    # otherwise.
    cuts: dict[str, tuple[float | None, Literal["left", "right"]]] = {
        m.recipe["keep"].get("column"): (
            m.decisions.get("cut"),
            "right" if m.recipe["keep"]["name"].startswith("highest") else "left",
        )
        for m in every_run.values()
        if m.verb == "filter"
        and m.decisions.get("cut") is not None
        and m.parents[0].url == manifest.url
    }
    blocks: list[page.Block] = []
    for column, log_x, label in (
        ("perplexity", True, "perplexity of the caption, given the picture"),
        ("image_gain", False, "image gain, nats per token"),
        *guided,
    ):
        values = table[column].to_numpy(zero_copy_only=False)
        # Samples without images have no gain.
        is_known = ~np.isnan(values)
        if not is_known.any():
            continue
        cut, side = cuts.get(column, (None, None))
        edges = _edges(values[is_known], log_x)
        blocks.append(
            page.Histogram(
                series={
                    name: np.histogram(values[mask & is_known].clip(edges[0], edges[-1]), edges)[
                        0
                    ].tolist()
                    for name, mask in groups.items()
                },
                edges=edges.tolist(),
                x_label=label,
                cut=cut,
                kept_side=side,
                log_x=log_x,
                normalise=has_noise,
                caption="Shares of clean and of damaged captions." if has_noise else "",
            )
        )
    rejects = reject_reasons(manifest.counts)
    text = (
        f"{manifest.counts['samples']:,} samples were scored in {manifest.seconds:.0f} s by"
        f" `{manifest.recipe['model']}`; {manifest.counts.get('rejected', 0)} were rejected"
        + (": " if rejects else "")
        + ", ".join(f"{reason} {number}" for reason, number in rejects)
        + "."
    )
    return page.Section(title=f"Scores: {manifest.name}", lead_text=text, blocks=blocks)


def _guided(manifest: Manifest) -> list[tuple[str, bool, str]]:
    """Return the column of what guidance saves, if there is one, and what it is called."""
    guidance = manifest.recipe.get("guidance")
    if not guidance:
        return []
    label = f"nats per token that guidance by regions saves, alpha {guidance['alpha']:g}"
    return [("guided_gain", False, label)]


def _edges(values: Any, log_x: bool) -> Any:
    low, high = np.quantile(values, (0.002, 0.995))
    if high <= low:
        high = low + 1.0
    return np.geomspace(max(low, 1e-3), high, 41) if log_x else np.linspace(low, high, 41)
