"""Notice that Ray's own processes are gone before Ray ends this one.

When its GCS or its raylet is lost, Ray's C++ code waits for some seconds and then ends the driver
with exit code 1 and no word for its user. That is no bug and passes, so the driver has to end by
itself, with exit code 75, what is finished kept, and the reason in the run folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from consomme.base.errors import EXIT_TRY_AGAIN, ClusterError
from consomme.base.process import is_alive
from consomme.execution.failure import record_at_exit
from consomme.execution.ray_private import current_node

POLL_S = 0.5

GCS_GONE_S = 15.0
"""A cluster's GCS counts as lost if it refuses connections for this long; Ray waits 60 s."""

LEAVE_S = 4.0
"""The process ends by force if it has not ended by itself so long after a loss."""

_SIGNAL = signal.SIGUSR1


class _RayLost(KeyboardInterrupt):
    """Interrupts the main thread, through handlers of `Exception` in Ray's code."""


class RayWatch:
    """Watches the processes that this driver cannot do without."""

    def __init__(self, *, is_private: bool) -> None:
        self.reason = ""
        """What was lost; empty as long as everything is there."""

        self.is_told = False
        """Whether the main thread knows, and tells its user."""

        self._parts = dict(_parts(is_private=is_private))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-watch", daemon=True)

    def error(self) -> ClusterError:
        """Return what a user should read."""
        return ClusterError(
            f"the Ray cluster failed: {self.reason} is gone; run the same command again to go on"
        )

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End watching, because Ray is about to be shut down."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            for name, is_there in self._parts.items():
                if not is_there() and not self._stop.is_set():
                    self.reason = name
                    self._leave()
                    return

    def _leave(self) -> None:
        """Interrupt the main thread, and end the process if that does not help."""
        late = threading.Timer(LEAVE_S, self._end)
        late.daemon = True
        late.start()
        signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def _end(self) -> None:
        if not self.is_told:
            print(f"consomme: {self.error()}", file=sys.stderr, flush=True)  # noqa: T201
        # What hangs in Ray's code never gets as far as to say why.
        record_at_exit(self.error())
        end_private_ray()
        os._exit(EXIT_TRY_AGAIN)


@contextlib.contextmanager
def watched(*, is_private: bool) -> Iterator[RayWatch | None]:
    """Turn the loss of Ray's processes into a `ClusterError`, in the main thread only.

    Of nested blocks the outermost watches.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(_SIGNAL) is _interrupt:
        yield None
        return
    watch = RayWatch(is_private=is_private)
    before = signal.signal(_SIGNAL, _interrupt)
    watch.start()
    try:
        yield watch
    # Ray's own errors about the loss come first sometimes.
    except (Exception, _RayLost) as error:
        if watch.reason:
            watch.is_told = True
            raise watch.error() from error
        raise
    finally:
        watch.stop()
        signal.signal(_SIGNAL, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _RayLost


def end_private_ray() -> None:
    """Kill the processes of the Ray that this process started, if any, and their workers."""
    node = current_node()
    if node is None:
        return
    started = [one.process.pid for parts in node.all_processes.values() for one in parts]
    # Workers wait for a GCS that is gone for as long as for one that is late.
    workers = [pid for pid in _descendants(started) if pid != os.getpid()]
    with contextlib.suppress(Exception):
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    for pid in workers:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pids: Sequence[int]) -> list[int]:
    """List the processes below some."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found: list[int] = []
    queue = list(pids)
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parts(*, is_private: bool) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Yield what is watched: its name, and how to see whether it is alive."""
    node = current_node()
    if node is None:
        return
    if is_private:
        for kind, name in (("gcs_server", "its GCS"), ("raylet", "its raylet")):
            for one in node.all_processes.get(kind, ()):
                yield name, partial(_is_child_alive, one.process)
        return
    yield "the GCS on its head node", _Refusals(node.gcs_address)
    pid = _raylet_of(node.raylet_socket_name)
    if pid is not None:
        yield "the raylet of this node", partial(is_alive, pid)


def _is_child_alive(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


class _Refusals:
    """Whether a TCP server still accepts connections, with some patience."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = (host.strip("[]"), int(port))
        self.since: float | None = None

    def __call__(self) -> bool:
        try:
            socket.create_connection(self.address, timeout=5).close()
        except OSError:
            now = time.monotonic()
            self.since = now if self.since is None else self.since
            return now - self.since < GCS_GONE_S
        self.since = None
        return True


def _raylet_of(socket_name: str) -> int | None:
    """Find the raylet of this node by its socket on its command line."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words: Any = entry.read_bytes().split(b"\0")
            is_raylet = words[0].endswith(b"/raylet")
            if is_raylet and any(word.endswith(b"=" + socket_name.encode()) for word in words):
                return int(entry.parent.name)
    return None
