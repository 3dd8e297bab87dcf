"""Watch how long the queue of an engine is, for the report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from consomme.execution.stage import Gauge

QUEUE_INTERVAL_S = 0.5


class Load(Protocol):
    """How busy an engine is."""

    @property
    def running(self) -> int:
        """Requests that are being answered."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""


class QueueMonitor:
    """Samples the length of an engine's queue, in a thread."""

    def __init__(self, load: Callable[[], Load], interval_s: float = QUEUE_INTERVAL_S) -> None:
        self._load, self._interval_s = load, interval_s
        self._seen: list[Gauge] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, name="queue", daemon=True).start()

    def _sample(self) -> None:
        while True:
            time.sleep(self._interval_s)
            load, now = self._load(), time.time()
            with self._lock:
                self._seen += [(now, "running", load.running), (now, "waiting", load.waiting)]

    def take(self) -> list[Gauge]:
        """Return the measurements since the last call."""
        with self._lock:
            seen, self._seen = self._seen, []
        return seen
