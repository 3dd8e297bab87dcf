"""Start commands as forks of a process that has done their imports.

A command of its own spends most of its start on importing torch and Ray. A fork runs the same code,
from the command line's arguments on, and is a process with a session of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from consomme.base.process import end

_MODULES = [
    "consomme.cli",
    "consomme.engines.generation.transformers",
    "consomme.engines.scoring.transformers",
    "consomme.pipelines.evaluate.run",
    "consomme.pipelines.recaption.run",
    "consomme.pipelines.score.run",
    "consomme.pipelines.soup.run",
    "consomme.pipelines.soup.searched",
    "consomme.pipelines.train.run",
    "ray.data",
]

_CONTEXT = multiprocessing.get_context("forkserver")


def preload() -> None:
    """Start the process that is forked; it inherits this one's environment."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    _CONTEXT.set_forkserver_preload([*_MODULES, __name__])


class Forked:
    """A running command, to be used as a `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it.

        Args:
            command: Arguments of `consomme`.
            environment: Variables beside those of `preload`.
            log: What it says is added here.
        """
        arguments = (list(command), dict(environment), str(log))
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            TimeoutError: It runs for longer.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError
        return code


def _run(command: list[str], environment: dict[str, str], log: str) -> None:
    os.setsid()
    os.environ |= environment
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    sys.argv = ["consomme", *command]
    from consomme.cli import entry

    try:
        entry()
    except SystemExit as ended:
        # As an interpreter does at its end; `multiprocessing` would leave out the exit handlers.
        threading._shutdown()  # type: ignore[attr-defined]
        end(int(ended.code or 0))
