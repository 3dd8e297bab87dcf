"""The report of a sweep: a table of trials, and the metric plotted against time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.pipelines.sweep.table import (
    REASON_HEADER,
    figure_name,
    metric_cells,
    metric_headers,
)
from consomme.report import model as page
from consomme.report.guards import guard_tables
from consomme.report.html import render
from consomme.sweep.keys import format_value

COSTS = {
    "train/step_s": ("seconds per step", 1.0),
    "train/peak_bytes": ("peak memory of a worker, MB", 2.0**20),
}
"""Cost metric -> axis label, and divisor; the metric of the sweep is plotted against each."""


def sweep_report(
    name: str, description: str, fingerprint: str, decisions: Mapping[str, Any]
) -> str:
    """Render the report of a sweep as HTML.

    Args:
        name: Of the sweep.
        description: Text at the top of the report.
        fingerprint: Of the run.
        decisions: Of its manifest.
    """
    trials = decisions["trials"]
    states = [trial["state"] for trial in trials]
    return render(
        page.Report(
            title=f"sweep {name}",
            subtitle=f"run `{fingerprint}`",
            facts=[
                ("trials", str(len(trials))),
                *((state, str(states.count(state))) for state in dict.fromkeys(states)),
            ],
            sections=sweep_sections(description, decisions),
        )
    )


def sweep_sections(description: str, decisions: Mapping[str, Any]) -> list[page.Section]:
    """Return the sections of a sweep's report.

    Args:
        description: Text at the top of the report.
        decisions: Of the manifest.
    """
    trials, metric = decisions["trials"], decisions["metric"]
    best = next(trial for trial in trials if trial["number"] == decisions["best"])
    own = [metric] if metric.startswith("evaluate/") else []
    figures = [*own, *(figure for figure in decisions["figures"] if figure != metric)]
    which = "highest" if decisions["mode"] == "max" else "lowest"
    keys = ", ".join(f"`{key}` {format_value(value)}" for key, value in best["keys"].items())
    text = (
        f"Trial {best['number']} has the {which} {_metric_name(metric)}, {best['value']:.4g}:"
        f" {keys}."
        f" Its model is in `{best['train']}`."
    )
    first = page.Section(
        title="Result",
        lead_text=f"{description}\n\n{text}" if description else text,
        blocks=[*_seed_means_table(decisions["means"], figures), *_cost_plots(decisions)],
    )
    table = page.Section(title="Trials", blocks=_trial_tables(trials, figures, decisions["best"]))
    kept = [
        block
        for trial in trials
        for block in guard_tables(trial.get("findings", ()), f"trial {trial['number']}")
    ]
    if not kept:
        return [first, table]
    lead = "What each trained model has kept of its start; trials that lost too much are not best."
    return [first, table, page.Section(title="Guards", lead_text=lead, blocks=kept)]


def _metric_name(metric: str) -> str:
    return figure_name(metric) if metric.startswith("evaluate/") else f"`{metric}`"


def _seed_means_table(
    means: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> list[page.Block]:
    """Return the table of means over seeds, if there are any."""
    if not means:
        return []
    rows: list[list[page.Cell]] = []
    for number, group in enumerate(means, 1):
        spread = metric_cells(group["spread"], figures)
        cells = [
            None if mean is None else _with_spread(mean, other)
            for mean, other in zip(metric_cells(group["mean"], figures), spread, strict=True)
        ]
        rows.append([number, group["label"], len(group["numbers"]), *cells])
    caption = "Mean ± standard deviation over trials that differ only in their seed."
    columns = ("", "keys", "trials", *metric_headers(figures))
    return [page.Table(columns=columns, rows=rows, caption=caption)]


def _with_spread(mean: float, spread: float | None) -> str:
    digits = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 10 else 3
    if not spread:
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}"


def _cost_plots(decisions: Mapping[str, Any]) -> list[page.Block]:
    """Plot the metric of the sweep against each cost."""
    metric = decisions["metric"]
    if decisions["means"]:
        what = "row of the table above"
        points = [(str(n), group["mean"]) for n, group in enumerate(decisions["means"], 1)]
    else:
        what = "number of the trial"
        points = [(str(trial["number"]), trial["metrics"]) for trial in decisions["trials"]]
    blocks: list[page.Block] = []
    for cost, (label, unit) in COSTS.items():
        known = [(n, m[cost] / unit, m[metric]) for n, m in points if cost in m and metric in m]
        if len(known) > 1 and cost != metric:
            blocks.append(
                page.Dots(
                    dots=[page.Dot(label=n, x=x, y=y) for n, x, y in known],
                    x_label=label,
                    y_label=figure_name(metric) if metric.startswith("evaluate/") else metric,
                    caption=f"Each dot is labelled with the {what}.",
                )
            )
    return blocks


def _trial_tables(
    trials: Sequence[Mapping[str, Any]], figures: Sequence[str], best: int
) -> list[page.Block]:
    keys = list(trials[0]["keys"])
    has_reasons = any(trial["reason"] for trial in trials)
    rows: list[list[page.Cell]] = [
        [
            trial["number"],
            *(format_value(trial["keys"][key]) for key in keys),
            trial["state"],
            *metric_cells(trial["metrics"], figures),
            *([trial["reason"] or None] if has_reasons else []),
        ]
        for trial in trials
    ]
    reason = (REASON_HEADER,) if has_reasons else ()
    table = page.Table(
        columns=("trial", *keys, "state", *metric_headers(figures), *reason),
        rows=rows,
        highlight=[index for index, trial in enumerate(trials) if trial["number"] == best],
        caption="The best trial is highlighted.",
    )
    folders = page.Table(
        columns=("trial", "train run", "evaluate run"),
        rows=[(t["number"], f"`{t['train']}`", f"`{t['evaluate']}`" or None) for t in trials],
        caption="Each trial has ordinary runs with their own recipe, manifest and report.",
    )
    return [table, folders]
