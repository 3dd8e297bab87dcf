"""What was measured on the side while a run went on, such as how long an engine's queue was.

It decides nothing and may differ from run to run, so it lies beside the ledger, not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from consomme.execution.stage import Gauge
from consomme.storage.stores.store import Store

GAUGES = "gauges.json"
MOST_POINTS = 600
"""Points kept per gauge: more cannot be seen in a chart."""


class GaugeLog:
    """Collects gauges while a run goes on; memory does not grow with its length."""

    def __init__(self) -> None:
        self._series: dict[str, list[tuple[float, float]]] = {}

    def add(self, gauges: Iterable[Gauge]) -> None:
        """Add what an actor saw; of several actors at a time the mean is kept."""
        for when, name, value in gauges:
            self._series.setdefault(name, []).append((when, value))
        for name, points in self._series.items():
            if len(points) > 8 * MOST_POINTS:
                self._series[name] = thinned(sorted(points), 4 * MOST_POINTS)

    def save(self, store: Store) -> None:
        """Write them into a run folder, if there are any.

        A run that was interrupted keeps what its last attempt measured.
        """
        if not self._series:
            return
        began = min(when for points in self._series.values() for when, _ in points)
        series = {
            name: [(round(when - began, 3), round(value, 3)) for when, value in points]
            for name, points in sorted(self._series.items())
            for points in [thinned(sorted(points), MOST_POINTS)]
        }
        store.write(GAUGES, json.dumps({"began": began, "series": series}).encode())


def load_gauges(store: Store) -> dict[str, list[tuple[float, float]]]:
    """Read what `GaugeLog.save` wrote: seconds and values by name; empty if there is nothing."""
    if not store.exists(GAUGES):
        return {}
    series = json.loads(store.read(GAUGES))["series"]
    return {name: [(when, value) for when, value in points] for name, points in series.items()}


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Average neighbours until at most so many points are left."""
    size = max(1, -(-len(points) // most))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        (
            sum(when for when, _ in group) / len(group),
            sum(value for _, value in group) / len(group),
        )
        for group in groups
    ]
