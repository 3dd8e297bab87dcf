"""Bring errors home from workers: find our own inside what Ray wraps around them.

Ray raises its own classes with the worker's traceback as the message. A user needs the one sentence
that the worker's `ConsommeError` says, and the exit code that goes with it. Errors that travel as
data, in a receipt, are packed as class name and text.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator

from consomme.base import errors
from consomme.base.errors import ClusterError, ConsommeError
from consomme.base.secrets import redact
from consomme.storage.stores.local import explained


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raise what a worker meant: its `ConsommeError`, or a `ClusterError` if Ray itself failed."""
    try:
        yield
    # Whatever a worker raised comes back as some class of Ray's; all of it is raised again.
    except Exception as error:
        own = find_own(error)
        if own is error:
            raise
        if own is not None:
            raise own from None
        if _is_cluster_failure(error):
            text = str(error).strip().splitlines()
            raise ClusterError(
                f"the Ray cluster failed ({type(error).__name__}: {text[0] if text else ''});"
                " run the same command again to go on"
            ) from error
        raise


def find_own(error: BaseException) -> ConsommeError | None:
    """Search an error, and everything it was raised from, for a `ConsommeError`.

    Ray makes a class on the fly that is ours and its own at once, with a traceback as its text; the
    error itself is its `cause`.
    """
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        cause = getattr(current, "cause", None)
        if not isinstance(cause, BaseException):
            cause = None
        is_copy = isinstance(cause, ConsommeError) or _is_of_ray(current)
        if isinstance(current, ConsommeError) and not is_copy:
            return current
        queue += [cause, current.__cause__, current.__context__]
    return None


def find_known(error: BaseException) -> ConsommeError | None:
    """Search an error as `find_own` does, or else for one of the system that is no bug of ours.

    Not every file goes through a store: caches, temporary folders and Ray's own files do not.
    """
    own = find_own(error)
    if own is not None:
        return own
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and (found := explained(current)) is not None:
            return found
        cause = getattr(current, "cause", None)
        current = cause if isinstance(cause, BaseException) else current.__cause__
    return None


def _is_of_ray(error: BaseException) -> bool:
    """Whether it is an error of Ray; does not import Ray."""
    exceptions = sys.modules.get("ray.exceptions")
    return exceptions is not None and isinstance(error, exceptions.RayError)


def pack_error(error: ConsommeError) -> str:
    """Write an error as class name and text; other classes become their base in `base.errors`."""
    names = [cls.__name__ for cls in type(error).__mro__]
    known = next(name for name in names if hasattr(errors, name))
    fields = {"class": known, "text": redact(str(error)), "unit": error.unit}
    return json.dumps(fields)


def unpack_error(packed: str) -> ConsommeError:
    """Make the error that `pack_error` wrote."""
    fields = json.loads(packed)
    cls: type[ConsommeError] = getattr(errors, fields["class"])
    error = cls(fields["text"])
    error.unit = fields["unit"]
    return error


class UnexpectedError(Exception):
    """An error of a library whose text held secrets; the text says of which class it was."""


def without_secrets(error: Exception) -> Exception:
    """Return an error whose text and causes hold no secrets: the same one if they hold none.

    Ray writes what a worker raises into logs that everyone on the cluster can read.
    """
    text = "".join(traceback.format_exception(error))
    clean = redact(text)
    if clean == text:
        return error
    return UnexpectedError(f"{type(error).__name__}: {redact(str(error))}\n{clean}")


def _is_cluster_failure(error: Exception) -> bool:
    """Whether Ray failed, and not what it ran; calls to a head that is gone fail in many ways."""
    from ray import exceptions

    of_what_it_ran = (
        exceptions.RayTaskError,
        exceptions.UserCodeException,
        exceptions.UnserializableException,
    )
    if isinstance(error, of_what_it_ran):
        return False
    return isinstance(error, exceptions.RayError | ConnectionError)
