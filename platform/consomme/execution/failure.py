"""Why an attempt of a run ended without finishing it: `failure.json` in the run folder.

A log goes with its cluster, so the whole reason stays beside the data: for `status`, for the
report, and for whoever asks the next morning. The next attempt deletes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from consomme.base.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    CheckpointError,
    ClusterError,
    ConsommeError,
    DataError,
    RecipeError,
    SupersededError,
    TerminatedError,
)
from consomme.base.secrets import redact
from consomme.execution.errors import find_known
from consomme.storage.ledger import attempts
from consomme.storage.ledger.run_folder import FAILURE, RunFolder
from consomme.storage.stores.retries import hurry

logger = logging.getLogger(__name__)

_AGAIN = "run the same command again; it goes on where it stopped"

_ADVICE: dict[type[BaseException], str] = {
    SupersededError: "the newer attempt goes on with this run; there is nothing to do",
    ClusterError: _AGAIN,
    DataError: "starting again changes nothing: mend the data or the recipe as the message says,"
    " then run the command again; what is finished is kept",
    CheckpointError: "starting again changes nothing: mend or replace the model as the message"
    " says, then run the command again",
    RecipeError: "starting again changes nothing: change the recipe or the command as the message"
    " says",
    TerminatedError: _AGAIN,
    KeyboardInterrupt: _AGAIN,
}

_BUG = (
    "this is a bug in consomme: report it with the traceback in failure.json. Starting again keeps"
    " what is finished, and may end the same way"
)


_running: list[RunFolder] = []
"""Folders of the runs that this process is doing."""


@contextlib.contextmanager
def recorded_failures(folder: RunFolder) -> Iterator[None]:
    """Write down why the block ended, if it raises."""
    folder.store.delete(FAILURE)
    _running.append(folder)
    try:
        yield
    # Ctrl-C and SIGTERM are reasons, too. Everything is raised again.
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            _write(folder, error)
        raise
    finally:
        _running.remove(folder)


def record_at_exit(error: ConsommeError) -> None:
    """Write down why the process is about to end by force, in the folders of its runs."""
    for folder in list(_running):
        _write(folder, error)


def _write(folder: RunFolder, error: BaseException) -> None:
    try:
        # Storage may be the very thing that failed; the reason is then in the log alone.
        with hurry():
            # The folder is another attempt's by now.
            if not isinstance(find_known(error), SupersededError):
                content = describe_failure(error, attempts.latest(folder.store).number)
                folder.store.write(FAILURE, json.dumps(content, indent=1).encode())
    except (OSError, ConsommeError) as problem:
        logger.warning("%s: the reason could not be stored: %s", folder.url, problem)


def describe_failure(error: BaseException, attempt_no: int) -> dict[str, Any]:
    """Return the content of `failure.json`."""
    own: BaseException = find_known(error) or error
    code = exit_code_of(own)
    return {
        "code": code,
        "class": type(own).__name__,
        "message": redact(str(own)) or type(own).__name__,
        "advice": advice_of(own),
        "unit": getattr(own, "unit", ""),
        "attempt": attempt_no,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "traceback": redact(_traceback(error)) if code == EXIT_BUG else "",
    }


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, ConsommeError):
        return error.exit_code
    if isinstance(error, TerminatedError):
        return EXIT_TERMINATED
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_BUG


def advice_of(error: BaseException) -> str:
    """Say what to do about an error."""
    return next((text for kind, text in _ADVICE.items() if isinstance(error, kind)), _BUG)
