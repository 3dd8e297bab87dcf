"""Measurements over time while a run goes on, such as the length of an engine's queue.

They decide nothing and may differ from run to run, so they are not part of the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from consomme.execution.stage import Gauge
from consomme.storage.stores.store import Store

GAUGES = "gauges.json"
MOST_POINTS = 600
"""Points kept per gauge; a chart cannot show more."""


class GaugeLog:
    """Collects gauges while a run goes on, in bounded memory."""

    def __init__(self) -> None:
        self._series: dict[str, list[tuple[float, float]]] = {}

    def add(self, gauges: Iterable[Gauge]) -> None:
        """Add the gauges of one actor; when thinned out, points of several actors are averaged."""
        for when, name, value in gauges:
            self._series.setdefault(name, []).append((when, value))
        for name, points in self._series.items():
            if len(points) > 8 * MOST_POINTS:
                self._series[name] = thinned(sorted(points), 4 * MOST_POINTS)

    def save(self, store: Store) -> None:
        """Write them into a run folder, if there are any.

        After an interrupted run, only the measurements of the last attempt are kept.
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
    """Read what `GaugeLog.save` wrote: (seconds, value) points by name; empty if there is none."""
    if not store.exists(GAUGES):
        return {}
    series = json.loads(store.read(GAUGES))["series"]
    return {name: [(when, value) for when, value in points] for name, points in series.items()}


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Average neighbouring points until at most `most` are left."""
    size = max(1, -(-len(points) // most))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        (
            sum(when for when, _ in group) / len(group),
            sum(value for _, value in group) / len(group),
        )
        for group in groups
    ]
