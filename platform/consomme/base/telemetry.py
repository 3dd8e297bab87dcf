"""Logging, progress and metrics of a run.

On a terminal, progress is a bar; otherwise it is one INFO line per interval, so that cluster logs
stay readable. Metrics are JSON lines named `<verb>/<what>_<unit>`.
"""

import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

logger = logging.getLogger(__name__)
_METRIC_NAME = re.compile(r"[a-z_]+/[a-z0-9_.]+_[a-z0-9]+(/[A-Za-z0-9_.-]+)?")
_HANDLER_NAME = "consomme"


def configure_logging(level: int = logging.INFO) -> None:
    """Log to the current standard error. Calling it again adds no second handler."""
    logger = logging.getLogger("consomme")
    logger.setLevel(level)
    for handler in logger.handlers:
        if handler.get_name() == _HANDLER_NAME and isinstance(handler, logging.StreamHandler):
            handler.stream = sys.stderr
            return
    handler = logging.StreamHandler()
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    )
    logger.addHandler(handler)
    logger.propagate = False


class Progress:
    """Report the progress of one stage.

    Use as a context manager and call `advance`. A line reads
    `score: 1,024 of 5,000 samples (20 %), 312.0 samples/s, 13 s left, 3 rejects (caption_empty 3)`.

    Args:
        total: Total number of items; None if unknown.
        what: Name of the stage, such as `"score"`.
        unit: Plural name of the items, such as `"samples"`.
        done: Items finished by earlier attempts; not included in the rate.
        interval_s: Seconds between lines if there is no terminal.
        is_terminal: Whether to draw a bar; by default, whether standard error is a terminal.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        unit: str,
        *,
        done: int = 0,
        interval_s: float = 60.0,
        is_terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.what = what
        self.unit = unit
        self.done = done
        self.rejects: Counter[str] = Counter()
        self.note: Callable[[], str] | None = None
        """Returns a remark to append to the line, such as the bottleneck stage."""

        self._done_before = done
        self._interval_s = interval_s
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._clock = clock
        self._started = self._last_line = clock()
        self._bar: tuple[RichProgress, TaskID] | None = None

    def __enter__(self) -> Self:
        """Start the clock, and the bar on a terminal."""
        self._started = self._last_line = self._clock()
        if self._is_terminal:
            self._open_bar()
        else:
            before = f", {self.done:,} done before" if self.done else ""
            count = "" if self.total is None else f"{self.total:,} "
            logger.info("%s: starting, %s%s%s", self.what, count, self.unit, before)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar and write the last line."""
        if self._bar is not None:
            self._bar[0].stop()
        state = "done" if kind is None else "stopped"
        logger.info("%s, %s in %.1f s", self.line(), state, self._clock() - self._started)

    def advance(self, count: int = 1, rejects: Mapping[str, int] | None = None) -> None:
        """Add finished items.

        Args:
            count: Number of newly finished items, rejects included.
            rejects: Number of rejects among them, by reason.
        """
        self.done += count
        self.rejects.update(rejects or {})
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self.done, note=self._rejects_text().lstrip(", "))
        elif self._clock() - self._last_line >= self._interval_s:
            self._last_line = self._clock()
            logger.info("%s", self.line())

    @property
    def rate(self) -> float:
        """Items per second of this attempt."""
        elapsed = self._clock() - self._started
        return (self.done - self._done_before) / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        """Format the progress as one line."""
        text = f"{self.what}: {self.done:,}"
        if self.total:
            text += f" of {self.total:,} {self.unit} ({100 * self.done / self.total:.0f} %)"
        else:
            text += f" {self.unit}"
        rate = self.rate
        if rate > 0:
            text += f", {rate:,.1f} {self.unit}/s"
            if self.total and self.done < self.total:
                text += f", {(self.total - self.done) / rate:,.0f} s left"
        text += self._rejects_text()
        return f"{text}; {self.note()}" if self.note and self.done != self.total else text

    def _rejects_text(self) -> str:
        if not self.rejects:
            return ""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejects.most_common(3))
        return f", {self.rejects.total():,} rejects ({reasons})"

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self.unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        bar.start()
        task = bar.add_task(self.what, total=self.total, completed=self.done, note="")
        self._bar = (bar, task)


class TextFiles(Protocol):
    """The operations of a store that metrics need."""

    def exists(self, path: str) -> bool:
        """Check whether a file exists."""
        ...

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically."""
        ...


class MetricsLog:
    """Write metrics as JSON lines: `{"name": "train/loss_nats", "value": 2.5, "step": 10}`.

    Object stores cannot append, so lines are buffered and the whole file is replaced periodically;
    a killed run loses at most `interval_s` seconds of metrics and never leaves a partial line.

    Args:
        store: Store of the file.
        path: Path of the file, usually `"metrics.jsonl"`.
        resume_step: Drop existing lines with a larger `step`, so that a resumed training run does
            not have two values for one step. None keeps all lines.
        interval_s: Seconds between writes.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: TextFiles,
        path: str = "metrics.jsonl",
        *,
        resume_step: int | None = None,
        interval_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._path = path
        self._interval_s = interval_s
        self._clock = clock
        self._last_write = clock()
        self._is_dirty = False
        lines = store.read(path).decode().splitlines() if store.exists(path) else []
        if resume_step is not None:
            lines = [line for line in lines if (json.loads(line)["step"] or 0) <= resume_step]
        self._lines = lines

    def log(self, name: str, value: float, step: int | None = None) -> None:
        """Add one metric.

        Args:
            name: `<verb>/<what>_<unit>`.
            value: The number.
            step: Position in the run: optimizer step, candidate, unit.

        Raises:
            ValueError: The name has no verb or no unit.
        """
        if not _METRIC_NAME.fullmatch(name):
            raise ValueError(f"metric {name!r}: expected <verb>/<what>_<unit>, as train/loss_nats")
        self._lines.append(json.dumps({"name": name, "value": float(value), "step": step}))
        self._is_dirty = True
        if self._clock() - self._last_write >= self._interval_s:
            self.flush()

    def flush(self) -> None:
        """Write the buffered lines."""
        if self._is_dirty:
            self._store.write(self._path, ("\n".join(self._lines) + "\n").encode())
        self._is_dirty = False
        self._last_write = self._clock()

    def __enter__(self) -> Self:
        """Return the log itself; leaving the context writes the last lines."""
        return self

    def __exit__(self, *error: object) -> None:
        """Write the buffered lines, even if the run fails."""
        self.flush()
