"""Retry storage requests with exponential backoff, a bounded number of times.

Waits have full jitter, so that a thousand workers that were throttled together do not retry
together. The retries of the client libraries are off: a second loop below this one would hide the
outcome of the first try and multiply the waits.
Source: AWS Architecture Blog, "Exponential Backoff And Jitter", full jitter.
"""

import http.client
import logging
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import urllib3.exceptions

from consomme.base.errors import ClusterError, ConsommeError

logger = logging.getLogger(__name__)

T = TypeVar("T")

ErrorClassifier = Callable[[Exception], Exception | None]
"""Maps an exception to the error that the user should see; None if a retry may succeed."""

NETWORK_ERRORS = (
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
)
"""Exceptions of HTTP clients when the connection or the body breaks."""

_QUIET_TRIES = 3


def _fraction() -> float:
    # Not `random.random` itself: pickling it includes its state, and all workers that a store is
    # sent to would then draw the same waits.
    return random.random()


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to retry. The defaults wait up to 13 s in total, 6 s on average."""

    attempts: int = 8
    """Number of tries, including the first."""

    base_s: float = 0.1
    """Upper bound of the wait before the second try; doubles with each further try."""

    cap_s: float = 20.0
    """Upper bound of any wait."""

    total_s: float = 300.0
    """No try starts later than this after the first one; calls themselves may be slow to fail."""

    sleep: Callable[[float], None] = time.sleep
    """Function that waits."""

    fraction: Callable[[], float] = _fraction
    """Draws the fraction of the upper bound to wait, in [0, 1)."""

    clock: Callable[[], float] = time.monotonic
    """Monotonic clock in seconds."""

    def wait_s(self, tries: int) -> float:
        """Draw the wait after this many tries."""
        return self.fraction() * min(self.cap_s, self.base_s * 2.0 ** (tries - 1))


def retry(call: Callable[[], T], url: str, classify: ErrorClassifier, policy: RetryPolicy) -> T:
    """Call until it succeeds, fails permanently, or the policy's limits are reached.

    Args:
        call: The request; it must be safe to repeat.
        url: Subject of the request, for messages.
        classify: See `ErrorClassifier`. consomme's own errors are always final.
        policy: How long to retry.

    Raises:
        ClusterError: The last try failed with a transient error.
    """
    start, tries = policy.clock(), 0
    while True:
        tries += 1
        try:
            return call()
        except ConsommeError:
            raise
        except Exception as error:
            final = classify(error)
            if final is error:
                raise
            if final is not None:
                raise final from error
            wait_s, spent_s = policy.wait_s(tries), policy.clock() - start
            if tries >= policy.attempts or spent_s + wait_s > policy.total_s:
                raise ClusterError(
                    f"{url}: gave up after {tries} tries in {spent_s:.0f} s; the last one ended "
                    f"with {describe(error)}. The storage is overloaded or cannot be reached; run "
                    "the same command again later, it resumes where it stopped"
                ) from error
            level = logging.DEBUG if tries <= _QUIET_TRIES else logging.WARNING
            logger.log(level, "%s: try %d ended with %s", url, tries, describe(error))
        policy.sleep(wait_s)


def is_transient_status(status: int) -> bool:
    """Check whether a request that failed with this HTTP status may succeed on retry."""
    # 409: two concurrent writes. A response to HEAD has no more detail than the status.
    return status in (408, 409, 429) or (status >= 500 and status != 501)


def describe(error: BaseException) -> str:
    """Format the type and text of an error on one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")
