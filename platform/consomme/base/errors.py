"""Errors that a user can fix, and the exit code of each.

A message says what was found, where (key path, shard, tensor), what was expected and what to do.
Anything that is not a `ConsommeError` is our own bug and ends with a traceback and exit code 1.
A bad sample inside the data is not an error but a reject: see `consomme.base.sample.Reject`.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_TRY_AGAIN = 75
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class TerminatedError(KeyboardInterrupt):
    """The process was told to end by SIGTERM; like Ctrl-C, it passes handlers of `Exception`."""


class ConsommeError(Exception):
    """Base of everything consomme raises on purpose."""

    exit_code: ClassVar[int] = EXIT_BUG
    """Exit code of the process when this error reaches the command line."""

    unit: str = ""
    """Unit of the data in whose work it was met; empty if it concerns the whole run."""


class RecipeError(ConsommeError):
    """The recipe, an override or the command line is invalid."""

    exit_code = EXIT_USER
    problems: tuple[str, ...] = ()
    """One sentence for each problem; empty if the message is the only one."""

    @classmethod
    def from_problems(cls, where: str, problems: Sequence[str]) -> Self:
        """Put all problems of one recipe into one message, so that one edit can fix them all."""
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "".join(f"\n  - {problem}" for problem in problems)
        error = cls(f"{where}: {len(problems)} {noun}{lines}")
        error.problems = tuple(problems)
        return error


class DataError(ConsommeError):
    """The data as a whole cannot be used: an unreadable shard, too many rejects, no samples."""

    exit_code = EXIT_USER


class CheckpointError(ConsommeError):
    """A model folder is missing, incomplete, or unsuitable for the task."""

    exit_code = EXIT_USER


class ClusterError(ConsommeError):
    """The infrastructure failed; the same command may succeed later, and resumes."""

    exit_code = EXIT_TRY_AGAIN


class StorageAwayError(ClusterError):
    """Storage did not answer for as long as the recipe's patience lasts."""


class SupersededError(ConsommeError):
    """The same run was started again elsewhere, and that attempt took over."""

    # Not EXIT_TRY_AGAIN: two schedulers that both retry would overtake each other forever.
    exit_code = EXIT_USER


class EngineLostError(ClusterError):
    """The engine died, hangs, or cannot be reached; a new one may succeed."""
