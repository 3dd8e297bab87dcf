"""Tables of a sweep: one line per trial, and means over trials that differ in their seed only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from consomme.pipelines.sweep.trial import Trial
from consomme.sweep.keys import label, short

SEED = "seed"
"""Key that no conclusion may depend on."""

MEASURED = {
    "train/last_loss_nats": ("last loss", 1.0),
    "train/step_s": ("step s", 1.0),
    "train/peak_bytes": ("peak MB", 2.0**20),
    "optimizer_bytes": ("optimizer MB", 2.0**20),
    "num_trainable": ("trained", 1.0),
}
"""Metric of a trial -> head of its column, and the unit in metrics per unit of the column."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """What trials that differ in their seed only have in common."""

    label: str
    """Their keys, without the seed."""

    numbers: tuple[int, ...]
    """The trials."""

    mean: dict[str, float]
    """Metric -> mean."""

    spread: dict[str, float]
    """Metric -> standard deviation of the sample; missing of a single trial."""


def best_of(trials: Sequence[Trial], mode: Literal["max", "min"]) -> Trial:
    """The best of some trials that are done; of equal ones the first."""
    sign = 1.0 if mode == "max" else -1.0
    return max(trials, key=lambda trial: (sign * (trial.value or 0.0), -trial.number))


def means(trials: Sequence[Trial]) -> list[Mean]:
    """Gather trials that are done by all keys but the seed; empty where no seed is tried."""
    if not any(SEED in trial.keys for trial in trials):
        return []
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        rest = {key: value for key, value in trial.keys.items() if key != SEED}
        groups.setdefault(label(rest) or "all trials", []).append(trial)
    found = []
    for name, group in groups.items():
        names = [n for n in group[0].metrics if all(n in trial.metrics for trial in group)]
        values = {n: [trial.metrics[n] for trial in group] for n in names}
        found.append(
            Mean(
                label=name,
                numbers=tuple(trial.number for trial in group),
                mean={n: statistics.fmean(v) for n, v in values.items()},
                spread={n: statistics.stdev(v) for n, v in values.items() if len(v) > 1},
            )
        )
    return found


def figure_name(metric: str) -> str:
    """Write the name of a benchmark's figure for the head of a column."""
    name, _, figure = metric.removeprefix("evaluate/model/").rpartition("/")
    return f"{name}: {figure.removesuffix('_fraction').replace('_', ' ')}".replace("_", " ")


def measured(metrics: Mapping[str, float], figures: Sequence[str]) -> list[float | None]:
    """The cells of one line: benchmarks' figures, then what training cost."""
    costs = [
        None if metrics.get(name) is None else metrics[name] / unit
        for name, (_, unit) in MEASURED.items()
    ]
    return [*(metrics.get(name) for name in figures), *costs]


def heads(figures: Sequence[str]) -> list[str]:
    """Heads of the columns that `measured` fills."""
    return [*map(figure_name, figures), *(head for head, _ in MEASURED.values())]


def terminal_table(name: str, trials: Sequence[Trial], figures: Sequence[str]) -> dict[str, Any]:
    """The table for the command line."""
    keys = list(trials[0].keys)
    rows = [
        [
            str(trial.number),
            *(short(trial.keys[key]) for key in keys),
            trial.state,
            *("–" if cell is None else cell for cell in measured(trial.metrics, figures)),
        ]
        for trial in trials
    ]
    return {
        "title": f"{name}: {len(trials)} trials",
        "columns": ["trial", *keys, "state", *heads(figures)],
        "rows": rows,
    }
