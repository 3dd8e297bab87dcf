"""The report of a sweep: one table of trials, and what accuracy cost in time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.pipelines.sweep.table import figure_name, heads, measured
from consomme.report import model as page
from consomme.report.html import render
from consomme.sweep.keys import short

COSTS = {
    "train/step_s": ("seconds per step", 1.0),
    "train/peak_bytes": ("peak memory of a worker, MB", 2.0**20),
}
"""What is drawn against what trials are compared by."""


def sweep_report(name: str, description: str, mark: str, found: Mapping[str, Any]) -> str:
    """Draw the report of a sweep as one HTML text.

    Args:
        name: Of the sweep.
        description: What the report says first.
        mark: The run's fingerprint.
        found: The manifest's decisions.
    """
    trials = found["trials"]
    states = [trial["state"] for trial in trials]
    return render(
        page.Report(
            title=f"sweep {name}",
            subtitle=f"run `{mark}`",
            facts=[
                ("trials", str(len(trials))),
                *((state, str(states.count(state))) for state in dict.fromkeys(states)),
            ],
            sections=sweep_sections(description, found),
        )
    )


def sweep_sections(description: str, found: Mapping[str, Any]) -> list[page.Section]:
    """The sections of a sweep's report.

    Args:
        description: What the report says first.
        found: The manifest's decisions.
    """
    trials, metric = found["trials"], found["metric"]
    best = next(trial for trial in trials if trial["number"] == found["best"])
    own = [metric] if metric.startswith("evaluate/") else []
    figures = [*own, *(figure for figure in found["figures"] if figure != metric)]
    which = "highest" if found["mode"] == "max" else "lowest"
    keys = ", ".join(f"`{key}` {short(value)}" for key, value in best["keys"].items())
    text = (
        f"Trial {best['number']} has the {which} {_words(metric)}, {best['value']:.4g}: {keys}."
        f" Its model is in `{best['train']}`."
    )
    first = page.Section(
        title="What came out",
        lead_text=f"{description}\n\n{text}" if description else text,
        blocks=[*_means(found["means"], figures), *_costs(found)],
    )
    table = page.Section(title="Trials", blocks=_table(trials, figures, found["best"]))
    return [first, table]


def _words(metric: str) -> str:
    return figure_name(metric) if metric.startswith("evaluate/") else f"`{metric}`"


def _means(means: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> list[page.Block]:
    """Means over seeds, if there are any."""
    if not means:
        return []
    rows: list[list[page.Cell]] = []
    for number, group in enumerate(means, 1):
        spread = measured(group["spread"], figures)
        cells = [
            None if mean is None else _with_spread(mean, other)
            for mean, other in zip(measured(group["mean"], figures), spread, strict=True)
        ]
        rows.append([number, group["label"], len(group["numbers"]), *cells])
    caption = "Mean ± standard deviation over trials that differ in their seed only."
    columns = ("", "keys", "trials", *heads(figures))
    return [page.Table(columns=columns, rows=rows, caption=caption)]


def _with_spread(mean: float, spread: float | None) -> str:
    digits = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 10 else 3
    if not spread:
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}"


def _costs(found: Mapping[str, Any]) -> list[page.Block]:
    """What trials are compared by, over what they cost."""
    metric = found["metric"]
    if found["means"]:
        what = "line of the table above"
        points = [(str(n), group["mean"]) for n, group in enumerate(found["means"], 1)]
    else:
        what = "number of the trial"
        points = [(str(trial["number"]), trial["metrics"]) for trial in found["trials"]]
    blocks: list[page.Block] = []
    for cost, (label, unit) in COSTS.items():
        known = [(n, m[cost] / unit, m[metric]) for n, m in points if cost in m and metric in m]
        if len(known) > 1 and cost != metric:
            blocks.append(
                page.Dots(
                    dots=[page.Dot(label=n, x=x, y=y) for n, x, y in known],
                    x_label=label,
                    y_label=figure_name(metric) if metric.startswith("evaluate/") else metric,
                    caption=f"Each dot bears the {what}.",
                )
            )
    return blocks


def _table(
    trials: Sequence[Mapping[str, Any]], figures: Sequence[str], best: int
) -> list[page.Block]:
    keys = list(trials[0]["keys"])
    rows: list[list[page.Cell]] = [
        [
            trial["number"],
            *(short(trial["keys"][key]) for key in keys),
            trial["state"],
            *measured(trial["metrics"], figures),
        ]
        for trial in trials
    ]
    table = page.Table(
        columns=("trial", *keys, "state", *heads(figures)),
        rows=rows,
        highlight=[index for index, trial in enumerate(trials) if trial["number"] == best],
        caption="The best one is marked.",
    )
    ends = [t for t in trials if t["reason"]]
    reasons = page.Table(
        columns=("trial", "state", "why"),
        rows=[(t["number"], t["state"], t["reason"]) for t in ends],
    )
    folders = page.Table(
        columns=("trial", "train run", "evaluate run"),
        rows=[(t["number"], f"`{t['train']}`", f"`{t['evaluate']}`" or None) for t in trials],
        caption="Each trial is an ordinary run, with its own recipe, manifest and report.",
    )
    return [table, *([reasons] if ends else []), folders]
