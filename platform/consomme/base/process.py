"""Start and end processes that import torch and transformers without unnecessary work.

Imports run without the garbage collector: they make objects by the hundred thousand and drop hardly
any. And a process that is done exits without tearing the interpreter down, which only frees memory
that the system takes back anyway. Together this saves 2.5 s of the 6.5 s of CPU that such a process
takes before and after its work. Nothing happens at import time: a process calls these functions.
"""

import atexit
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from consomme.base.secrets import redact_output

WORKER_HOOK = f"{__name__}.start_worker"
"""Function that Ray's workers call when they start."""


@contextlib.contextmanager
def imports_without_gc() -> Iterator[None]:
    """Disable the garbage collector inside the block; freeze all objects if it imported a module.

    Frozen objects are never again searched for reference cycles.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
            # Libraries that report leaked objects at exit must not see frozen ones as leaks.
            atexit.unregister(gc.unfreeze)
            atexit.register(gc.unfreeze)
        if was_enabled:
            gc.enable()


def leave_fast(code: int = 0) -> None:
    """Make this process exit with `code` right after its other exit handlers, without teardown.

    Threads are joined as usual.
    """
    atexit.register(end, code)


def start_worker() -> None:
    """Prepare a worker process: what it says has no secrets, and it ends without teardown."""
    redact_output()
    leave_fast()


def end(code: int) -> NoReturn:
    """Run the registered exit handlers and exit the process."""
    atexit.unregister(end)
    atexit.unregister(gc.unfreeze)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def this_process() -> dict[str, str]:
    """Identify this process among all that ever ran anywhere, as far as the system tells.

    A process id alone is used again, and every container has one of each number.
    """
    return {
        "host": socket.gethostname(),
        "machine": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "process_start": _start_of(os.getpid()),
    }


def is_running(pid: int, identity: Mapping[str, str]) -> bool | None:
    """Check whether a process that `this_process` described runs; None if it cannot be known here.

    Args:
        pid: Its process id.
        identity: What `this_process` returned there.
    """
    here = this_process()
    names = ("host", "machine", "namespace")
    if not all(here[name] and here[name] == identity.get(name) for name in names):
        return None
    return _start_of(pid) == identity.get("process_start")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended, and that nobody has waited for, does not."""
    return bool(_start_of(pid))


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty if it is gone or a zombie."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables inside the block and restore the old ones afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
