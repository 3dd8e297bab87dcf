"""Try again, a bounded number of times: the one place that decides how long storage may fail.

Waits grow exponentially with full jitter, so that a thousand workers that were throttled together
do not come back together. Clients' own retries are off: a second loop below this one would hide
what happened to the first try, and multiply the waits.
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
"""Turns what a call raised into what the user should see; None if the next try may do better."""

NETWORK_ERRORS = (
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
)
"""What any HTTP client raises when the connection or the body breaks."""

_QUIET_TRIES = 3


def _fraction() -> float:
    # Not `random.random` itself: pickling it takes its state along, and then every worker that a
    # store is sent to would wait the same times.
    return random.random()


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to go on. The defaults wait up to 13 s in all, 6 s on average."""

    attempts: int = 8
    """Tries, the first one included."""

    base_s: float = 0.1
    """Longest wait before the second try; it doubles with each one after."""

    cap_s: float = 20.0
    """No wait is longer."""

    total_s: float = 300.0
    """No try starts later than this after the first; calls may take long to fail by themselves."""

    sleep: Callable[[float], None] = time.sleep
    """How to wait."""

    fraction: Callable[[], float] = _fraction
    """Draws what share of the longest wait to take, in [0, 1)."""

    clock: Callable[[], float] = time.monotonic
    """Seconds since any fixed moment."""

    def wait_s(self, tries: int) -> float:
        """Draw the wait after so many tries."""
        return self.fraction() * min(self.cap_s, self.base_s * 2.0 ** (tries - 1))


def retry(call: Callable[[], T], url: str, classify: ErrorClassifier, policy: RetryPolicy) -> T:
    """Call until it works, something is wrong that stays wrong, or patience ends.

    Args:
        call: What to do; it must be safe to do twice.
        url: What it is done to, for messages.
        classify: See `ErrorClassifier`. consomme's own errors are final without asking.
        policy: How long to go on.

    Raises:
        ClusterError: The last try failed in a way that may pass.
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
                    "the same command again later, it goes on where it was"
                ) from error
            level = logging.DEBUG if tries <= _QUIET_TRIES else logging.WARNING
            logger.log(level, "%s: try %d ended with %s", url, tries, describe(error))
        policy.sleep(wait_s)


def is_transient_status(status: int) -> bool:
    """Tell whether a request that got this HTTP status may succeed when it is sent again."""
    # 409: two writes met. An answer to HEAD says no more than that.
    return status in (408, 409, 429) or (status >= 500 and status != 501)


def describe(error: BaseException) -> str:
    """Put an error's kind and text on one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")
