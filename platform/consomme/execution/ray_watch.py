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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
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

HEARD_S = 0.5
"""It ends by force so soon if the main thread does not even get to know of the loss: then it waits
in Ray's C++ code, which may end this process with exit code 1 at any moment."""

_OWN_PARTS = {"gcs_server": "its GCS", "raylet": "its raylet"}
"""Names of the programs of a private Ray without which it is of no use."""

_SIGNAL = signal.SIGUSR1


class _RayLost(KeyboardInterrupt):
    """Interrupts the main thread, through handlers of `Exception` in Ray's code."""


class RayWatch:
    """Watches the processes that this driver cannot do without."""

    def __init__(
        self, parts: Mapping[str, Callable[[], bool]], end_ray: Callable[[], None]
    ) -> None:
        """Do not watch yet.

        Args:
            parts: What to watch: its name, and how to see whether it is alive.
            end_ray: Ends the Ray that this process started, if any, before the process ends by
                force.
        """
        self.reason = ""
        """What was lost; empty as long as everything is there."""

        self.is_told = False
        """Whether the main thread knows, and tells its user."""

        self._parts, self._end_ray = parts, end_ray
        self._stop, self._is_heard = threading.Event(), threading.Event()
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
        signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
        if self._is_heard.wait(HEARD_S):
            time.sleep(LEAVE_S - HEARD_S)
        self._end()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal of a loss, in the main thread."""
        self._is_heard.set()
        raise _RayLost

    def _end(self) -> None:
        if not self.is_told:
            print(f"consomme: {self.error()}", file=sys.stderr, flush=True)  # noqa: T201
        # What hangs in Ray's code never gets as far as to say why.
        record_at_exit(self.error())
        self._end_ray()
        os._exit(EXIT_TRY_AGAIN)


def watched(*, is_private: bool) -> AbstractContextManager[RayWatch | None]:
    """Turn the loss of Ray's processes into a `ClusterError`, in the main thread only.

    Of nested blocks the outermost watches.
    """
    return _watching(lambda: dict(_parts(is_private=is_private)), end_private_ray)


def watched_start() -> AbstractContextManager[RayWatch | None]:
    """Do as `watched` while a private Ray is started inside the block.

    A Ray whose GCS dies before it is complete waits for it in C++ code for a minute, and then ends
    this process with exit code 1.
    """
    others = set(_descendants([os.getpid()]))

    def end_started() -> None:
        for pid in set(_descendants([os.getpid()])) - others:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    parts = {name: _Started(program) for program, name in _OWN_PARTS.items()}
    return _watching(lambda: parts, end_started)


@contextlib.contextmanager
def _watching(
    parts: Callable[[], Mapping[str, Callable[[], bool]]], end_ray: Callable[[], None]
) -> Iterator[RayWatch | None]:
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(_SIGNAL)
    if not is_main or isinstance(getattr(handler, "__self__", None), RayWatch):
        yield None
        return
    watch = RayWatch(parts(), end_ray)
    before = signal.signal(_SIGNAL, watch.interrupt)
    watch.start()
    try:
        yield watch
    # Ray's own errors about the loss come first sometimes, and where Ray's code is interrupted, it
    # raises a `KeyboardInterrupt` of its own.
    except (Exception, KeyboardInterrupt) as error:
        if watch.reason:
            watch.is_told = True
            raise watch.error() from error
        raise
    finally:
        watch.stop()
        signal.signal(_SIGNAL, before)


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
    children = _children()
    found: list[int] = []
    queue = list(pids)
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _children() -> dict[int, list[int]]:
    """List the children of every process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    return children


def _parts(*, is_private: bool) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Yield what is watched: its name, and how to see whether it is alive."""
    node = current_node()
    if node is None:
        return
    if is_private:
        for kind, name in _OWN_PARTS.items():
            for one in node.all_processes.get(kind, ()):
                yield name, partial(_is_child_alive, one.process)
        return
    yield "the GCS on its head node", _Refusals(node.gcs_address)
    pid = _raylet_of(node.raylet_socket_name)
    if pid is not None:
        yield "the raylet of this node", partial(is_alive, pid)


def _is_child_alive(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


class _Started:
    """Whether a program that this process starts has not ended; it need not have begun."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.pid = 0

    def __call__(self) -> bool:
        # One that has ended keeps its name until Ray asks for its exit code.
        for pid in () if self.pid else _children().get(os.getpid(), ()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == self.program:
                    self.pid = pid
        return not self.pid or is_alive(self.pid)


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
