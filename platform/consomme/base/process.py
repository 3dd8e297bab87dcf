"""Begin and end a process without work that nobody needs; what those it starts inherit.

Two decisions are made here, both for processes that import torch and transformers, of which a run
has a handful. Python does not look for garbage among what it imports: an import makes objects by
the hundred thousand and drops hardly any. And a process that is done leaves without taking Python
apart, which only frees memory that the system takes back anyway. Together they are 2.5 s of the
6.5 s of CPU that such a process takes before and after its work.
"""

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

WORKER_HOOK = f"{__name__}.leave_fast"
"""What Ray's workers call when they start."""


@contextlib.contextmanager
def kept_for_good() -> Iterator[None]:
    """Look for no reference cycle inside the block, and afterwards for none made up to its end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # Libraries that count what was never freed must not find it at the end.
        atexit.register(gc.unfreeze)
        if was_on:
            gc.enable()


def leave_fast(code: int = 0) -> None:
    """Have this process end with `code` as soon as all else that is to be done at its end is done.

    Threads are waited for as ever.
    """
    atexit.register(end, code)


def end(code: int) -> NoReturn:
    """Do what was registered for the end of the process, and end it."""
    atexit.unregister(end)
    atexit.unregister(gc.unfreeze)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these variables inside the block, for what is started or read there."""
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
