"""Find the bottleneck of a run from the time that each unit spent in each stage.

Every unit carries start and end of its time in each stage. Over the last minute, the busy seconds
of a stage divided by the seconds of its workers give its utilization; the stage with the highest
one is the bottleneck.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

BUSY_FRACTION = 0.6
"""Below this utilization no stage is called the bottleneck."""


def now() -> float:
    """Seconds since 1970: the clock that nodes share, to a few milliseconds."""
    return time.time()


Spans = list[tuple[str, float, float]]
"""Stage, start and end of each period of work on one unit."""


@contextlib.contextmanager
def timed(spans: Spans, stage: str) -> Iterator[None]:
    """Record start and end of the block as one span of `stage`."""
    began = now()
    yield
    spans.append((stage, began, now()))


class StageWatch:
    """Collects spans and tells which stage is the bottleneck.

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
        # The progress line and the heartbeat read from different threads.
        self._lock = threading.Lock()

    def add(self, spans: Spans) -> None:
        """Add the spans of a finished unit."""
        with self._lock:
            self._spans.append((self._clock(), spans))

    def busy(self) -> dict[str, float]:
        """Return the utilization of each stage in the window: a fraction of its workers' time."""
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
        """Describe the bottleneck in one line."""
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
