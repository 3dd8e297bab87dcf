"""Errors that come back from workers: find our own inside what Ray wraps around them.

Ray raises its own classes with the worker's traceback as the message. A user needs the one sentence
the worker's `ConsommeError` says, and the exit code that goes with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from consomme.base.errors import ClusterError, ConsommeError


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
    """Search an error and everything it was raised from for one of ours."""
    from ray.exceptions import RayError

    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray makes a class on the fly that is ours and its own at once; its text is a traceback.
        if isinstance(current, ConsommeError) and not isinstance(current, RayError):
            return current
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    return None


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


def _find_ours(error: BaseException) -> ConsommeError | None:
    """Find the error a user should see; Ray wraps what was raised on a worker."""
    current: BaseException | None = error
    while current is not None:
        wrapped = getattr(current, "cause", None)
        if isinstance(current, ConsommeError) and not isinstance(wrapped, ConsommeError):
            return current
        current = wrapped if isinstance(wrapped, BaseException) else current.__cause__
    return None
