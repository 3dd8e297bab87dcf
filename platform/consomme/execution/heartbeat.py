"""A heartbeat in the run folder: the driver's progress, for `consomme status` on other machines.

`progress.json` is replaced every few seconds. It decides nothing: the ledger does.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from consomme.base.errors import ConsommeError
from consomme.base.telemetry import Progress
from consomme.execution.spans import StageWatch, now
from consomme.storage.ledger.run_folder import PROGRESS
from consomme.storage.stores.store import Store

INTERVAL_S = 10.0

logger = logging.getLogger(__name__)


class Heartbeat:
    """Writes `progress.json` from a thread while the block runs."""

    def __init__(
        self,
        store: Store,
        attempt_no: int,
        progress: Progress,
        watch: StageWatch,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = now,
    ) -> None:
        self._store, self._attempt, self._progress, self._watch = store, attempt_no, progress, watch
        self._interval_s, self._clock = interval_s, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread, and write the final state."""
        self._stop.set()
        self._thread.join()
        self._write("done" if kind is None else f"stopped: {kind.__name__}")

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._write("running")

    def _write(self, state: str) -> None:
        content: dict[str, Any] = {
            "attempt": self._attempt,
            "state": state,
            "what": self._progress.what,
            "rows_done": self._progress.done,
            "rows": self._progress.total,
            "rows_per_s": round(self._progress.rate, 3),
            "stages": self._watch.line(),
            "time": self._clock(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            self._store.write(PROGRESS, json.dumps(content, indent=1).encode())
        except (OSError, ConsommeError) as error:
            # The run goes on without it; storage that stays unreachable fails it elsewhere.
            logger.warning("the heartbeat could not be written: %s", error)
