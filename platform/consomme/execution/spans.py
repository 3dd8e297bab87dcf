"""Who is busy, who waits, and for whom: worked out from when each unit was in which stage.

Every unit carries the begin and end of its time in each stage. In a window of the last minute, the
busy seconds of a stage divided by its workers' seconds say how busy it was; the busiest stage is
the bottleneck and the others wait for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

BUSY_FRACTION = 0.6
"""A stage less busy than this is nobody's bottleneck."""


def now() -> float:
    """Seconds since 1970: the one clock that nodes share, to some milliseconds."""
    return time.time()


Spans = list[tuple[str, float, float]]
"""Stage, begin and end of each stretch of work on one unit."""


@contextlib.contextmanager
def timed(spans: Spans, stage: str) -> Iterator[None]:
    """Note begin and end of what happens inside."""
    began = now()
    yield
    spans.append((stage, began, now()))


class StageWatch:
    """Collects spans and says which stage is the bottleneck.

    Args:
        stages: Names of the stages, first to last, and how many workers each has.
        window_s: How far back it looks.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        stages: Mapping[str, int],
        *,
        window_s: float = 60.0,
        clock: Callable[[], float] = now,
    ) -> None:
        self.stages = dict(stages)
        self._window_s = window_s
        self._clock = clock
        self._began = clock()
        self._spans: deque[tuple[float, Spans]] = deque()
        # The progress line and the heartbeat look from different threads.
        self._lock = threading.Lock()

    def add(self, spans: Spans) -> None:
        """Add a finished unit."""
        with self._lock:
            self._spans.append((self._clock(), spans))

    def busy(self) -> dict[str, float]:
        """Return how busy each stage was in the window, as a fraction of its workers' time."""
        end = self._clock()
        begin = max(self._began, end - self._window_s)
        with self._lock:
            while self._spans and self._spans[0][0] < begin:
                self._spans.popleft()
            recent = [spans for _, spans in self._spans]
        spent = dict.fromkeys(self.stages, 0.0)
        for spans in recent:
            for stage, start, stop in spans:
                if stage in spent:
                    spent[stage] += max(0.0, min(stop, end) - max(start, begin))
        length = max(end - begin, 1e-9)
        return {s: spent[s] / (length * max(1, n)) for s, n in self.stages.items()}

    def line(self) -> str:
        """Name the bottleneck and who waits for it."""
        if not self._spans:
            waited = self._clock() - self._began
            return (
                f"no unit finished yet ({waited:,.0f} s): workers are starting or wait for a node"
            )
        busy = self.busy()
        top = max(busy, key=lambda stage: busy[stage])
        others = ", ".join(
            f"{stage} {100 * min(share, 1):.0f} %" for stage, share in busy.items() if stage != top
        )
        if busy[top] < BUSY_FRACTION:
            shares = f"{top} {100 * busy[top]:.0f} %, {others}"
            return f"no stage is busy ({shares}): waiting for storage, nodes or Ray"
        workers = self.stages[top]
        noun = "worker" if workers == 1 else "workers"
        return (
            f"bottleneck {top}: its {workers} {noun} are {100 * min(busy[top], 1):.0f} % busy;"
            f" the rest waits for it ({others})"
        )
