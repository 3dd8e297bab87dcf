"""What was measured on the side while a run went on, such as how long an engine's queue was.

It decides nothing and may differ from run to run, so it lies beside the ledger, not in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from consomme.pipelines.stage import Gauge
from consomme.storage.files import Store

GAUGES = "gauges.json"
MOST_POINTS = 600
"""Points kept per gauge: more cannot be seen in a chart."""


def save_gauges(store: Store, gauges: Sequence[Gauge]) -> None:
    """Write gauges into a run folder; more than can be seen are averaged.

    A run that was interrupted keeps what its last attempt measured.
    """
    began = min(when for when, _, _ in gauges)
    series: dict[str, list[tuple[float, float]]] = {}
    for when, name, value in sorted(gauges):
        series.setdefault(name, []).append((when - began, value))
    content = {
        "began": began,
        "series": {name: thinned(points) for name, points in sorted(series.items())},
    }
    store.write(GAUGES, json.dumps(content).encode())


def load_gauges(store: Store) -> dict[str, list[tuple[float, float]]]:
    """Read what `save_gauges` wrote: seconds and values by name; empty if there is nothing."""
    if not store.exists(GAUGES):
        return {}
    series = json.loads(store.read(GAUGES))["series"]
    return {name: [(when, value) for when, value in points] for name, points in series.items()}


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until at most `MOST_POINTS` points are left."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        (
            round(sum(when for when, _ in group) / len(group), 3),
            round(sum(value for _, value in group) / len(group), 3),
        )
        for group in groups
    ]
