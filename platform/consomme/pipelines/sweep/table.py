"""Tables of a sweep: one row per trial, and means over trials that differ only in their seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from consomme.pipelines.sweep.trial import Trial
from consomme.sweep.keys import format_value, label

SEED = "seed"
"""Key over which results are averaged."""

REASON_HEADER = "why"
"""Header of the column that says why a trial failed or was stopped."""

MAX_REASON = 160
"""Characters of a reason in the terminal; the report and the trial's file have all of it."""

COST_COLUMNS = {
    "train/last_loss_nats": ("last loss", 1.0),
    "train/step_s": ("step s", 1.0),
    "train/peak_bytes": ("peak MB", 2.0**20),
    "optimizer_bytes": ("optimizer MB", 2.0**20),
    "num_trainable": ("trained", 1.0),
}
"""Metric of a trial -> column header, and the divisor from the metric's unit to the column's."""


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """Mean metrics of trials that differ only in their seed."""

    label: str
    """Their keys without the seed."""

    numbers: tuple[int, ...]
    """Numbers of the trials."""

    mean: dict[str, float]
    """Metric -> mean."""

    spread: dict[str, float]
    """Metric -> sample standard deviation; empty for a single trial."""


def best_of(trials: Sequence[Trial], mode: Literal["max", "min"]) -> Trial:
    """Return the best of the finished trials; the first one if several are equal."""
    sign = 1.0 if mode == "max" else -1.0
    return max(trials, key=lambda trial: (sign * (trial.value or 0.0), -trial.number))


def means_over_seeds(trials: Sequence[Trial]) -> list[SeedMean]:
    """Average finished trials over seeds; empty if the search space has no seed."""
    if not any(SEED in trial.keys for trial in trials):
        return []
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        rest = {key: value for key, value in trial.keys.items() if key != SEED}
        groups.setdefault(label(rest) or "all trials", []).append(trial)
    seed_means = []
    for name, group in groups.items():
        names = [n for n in group[0].metrics if all(n in trial.metrics for trial in group)]
        values = {n: [trial.metrics[n] for trial in group] for n in names}
        seed_means.append(
            SeedMean(
                label=name,
                numbers=tuple(trial.number for trial in group),
                mean={n: statistics.fmean(v) for n, v in values.items()},
                spread={n: statistics.stdev(v) for n, v in values.items() if len(v) > 1},
            )
        )
    return seed_means


def figure_name(metric: str) -> str:
    """Return the column header for a figure of a benchmark."""
    name, _, figure = metric.removeprefix("evaluate/model/").rpartition("/")
    return f"{name}: {figure.removesuffix('_fraction').replace('_', ' ')}".replace("_", " ")


def metric_cells(metrics: Mapping[str, float], figures: Sequence[str]) -> list[float | None]:
    """Return the metric cells of one row: figures of benchmarks, then costs of the training."""
    costs = [
        None if metrics.get(name) is None else metrics[name] / unit
        for name, (_, unit) in COST_COLUMNS.items()
    ]
    return [*(metrics.get(name) for name in figures), *costs]


def metric_headers(figures: Sequence[str]) -> list[str]:
    """Return the headers of the columns that `metric_cells` fills."""
    return [*map(figure_name, figures), *(header for header, _ in COST_COLUMNS.values())]


def terminal_table(name: str, trials: Sequence[Trial], figures: Sequence[str]) -> dict[str, Any]:
    """Return the table that the command line prints."""
    keys = list(trials[0].keys)
    has_reasons = any(trial.reason for trial in trials)
    rows = [
        [
            str(trial.number),
            *(format_value(trial.keys[key]) for key in keys),
            trial.state,
            *("–" if cell is None else cell for cell in metric_cells(trial.metrics, figures)),
            *([shortened(trial.reason)] if has_reasons else []),
        ]
        for trial in trials
    ]
    return {
        "title": f"{name}: {len(trials)} trials",
        "columns": [
            *("trial", *keys, "state", *metric_headers(figures)),
            *([REASON_HEADER] if has_reasons else []),
        ],
        "rows": rows,
    }


def shortened(reason: str) -> str:
    """Return the first line of a reason, cut to what a row of a terminal has room for."""
    line = reason.strip().partition("\n")[0]
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 1]}…"
