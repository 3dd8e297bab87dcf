"""Heartbeat in the run folder: the driver's progress, for `consomme status` on other machines.

`progress.json` is replaced every few seconds, from the start of a run to its end, by one thread. A
stage adds its progress while it runs. The file decides nothing: the ledger does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from consomme.base.errors import ConsommeError, SupersededError, TerminatedError
from consomme.base.process import this_process
from consomme.base.secrets import redact_all
from consomme.base.telemetry import Progress
from consomme.execution.spans import StageWatch, now
from consomme.storage.ledger.run_folder import PROGRESS
from consomme.storage.stores.retries import hurry
from consomme.storage.stores.store import Store

INTERVAL_S = 10.0

logger = logging.getLogger(__name__)

_REASONS: dict[type[BaseException], str] = {
    TerminatedError: "SIGTERM",
    KeyboardInterrupt: "Ctrl-C",
}

_CURRENT: ContextVar[Heartbeat | None] = ContextVar("heartbeat", default=None)


class Heartbeat:
    """Writes `progress.json` from a thread while the block runs."""

    def __init__(
        self, store: Store, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = now
    ) -> None:
        self._store, self._interval_s, self._clock = store, interval_s, clock
        self._attempt_no = 0
        self._stage: tuple[Progress, StageWatch] | None = None
        self.lost: ConsommeError | None = None
        """Why the driver has lost its storage for good; None while it reaches it."""

        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._is_in: Any = None

    def __enter__(self) -> Self:
        """Start the thread."""
        self._is_in = _CURRENT.set(self)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread, and write the final state."""
        _CURRENT.reset(self._is_in)
        self._stop.set()
        with contextlib.nullcontext() if kind is None else hurry():
            self._thread.join()
            if kind is not None and issubclass(kind, SupersededError):
                # The file is the newer attempt's by now.
                return
            if kind is None:
                self._write("done")
            else:
                self._write(f"stopped: {_REASONS.get(kind, kind.__name__)}")

    @contextlib.contextmanager
    def stage(self, attempt_no: int, progress: Progress, watch: StageWatch) -> Iterator[Self]:
        """Show the progress of a stage inside the block."""
        self._attempt_no, self._stage = attempt_no, (progress, watch)
        yield self
        # The last figures stay, whether the stage ended well or not.

    def _run(self) -> None:
        # The first beat at once: whoever looks sees that a driver lives.
        while not self._stop.is_set():
            self._write("running")
            self._stop.wait(self._interval_s)

    def _write(self, state: str) -> None:
        content: dict[str, Any] = {"attempt": self._attempt_no, "state": state}
        if self._stage is not None:
            progress, watch = self._stage
            content |= {
                "what": progress.what,
                "rows_done": progress.done,
                "rows": progress.total,
                "rows_per_s": round(progress.rate, 3),
                "stages": watch.line(),
            }
        content |= {"time": self._clock(), "pid": os.getpid(), **this_process()}
        try:
            self._store.write(PROGRESS, json.dumps(redact_all(content), indent=1).encode())
        except (OSError, ConsommeError) as error:
            # The run goes on without it; the driver asks `lost` when workers hand units back.
            logger.warning("the heartbeat could not be written: %s", error)
            if isinstance(error, ConsommeError):
                self.lost = error
        else:
            self.lost = None


@contextlib.contextmanager
def beating(
    store: Store, attempt_no: int, progress: Progress, watch: StageWatch
) -> Iterator[Heartbeat]:
    """Show a stage's progress in the heartbeat of its run; start one where there is none."""
    running = _CURRENT.get()
    with contextlib.ExitStack() as stack:
        if running is None or running._store.url != store.url:
            running = stack.enter_context(Heartbeat(store))
        stack.enter_context(running.stage(attempt_no, progress, watch))
        yield running
