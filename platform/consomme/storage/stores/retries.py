"""Retry storage requests with exponential backoff, for as long as the recipe's patience lasts.

Patience is a time, `storage.patience_s`, not a number of tries: a store that is away for five
minutes costs five minutes, whether a try fails in a millisecond or in a minute. Waits have full
jitter, so that a thousand workers that were throttled together do not retry together. The retries
of the client libraries are off: a second loop below this one would hide the outcome of the first
try and multiply the waits.

What cannot heal is not retried: wrong credentials, a missing bucket, a missing file, a host name
that does not exist and never answered in this process. Right after an outage, a refusal is tried
again for `SETTLE_S`, because a server that starts may not know its users and buckets yet.
Source: AWS Architecture Blog, "Exponential Backoff And Jitter", full jitter.
"""

import contextlib
import http.client
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import urllib3.exceptions

from consomme.base.errors import ConsommeError, RecipeError, StorageAwayError
from consomme.base.process import environment

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


class SlowDownError(Exception):
    """A server is busy, and may say after how many seconds to ask again."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        """Keep the time, 0 if none was named."""
        super().__init__(text)
        self.after_s = after_s


DEFAULT_PATIENCE_S = 600.0
"""How long to retry if nothing else is said."""

PATIENCE_VARIABLE = "CONSOMME_STORAGE_PATIENCE_S"
"""Environment variable with the patience in seconds; workers inherit the driver's."""

KNOWN_VARIABLE = "CONSOMME_STORAGE_KNOWN"
"""Set in workers: their driver has reached the storage, so its name is no typing error."""

SETTLE_S = 20.0
"""Refusals are retried until so long after the last sign of an outage."""

UNKNOWN_HOST_S = 5.0
"""How long a host name that was never resolved is looked up again."""

HURRY_S = 3.0
"""How long to retry once the process has been told to end."""

_LATE = 20
"""Fraction of the patience for a request that begins when all of it has passed already."""

_SPEAK_AFTER_S = 2.0
_SPEAK_EVERY_S = 30.0


def patience_s() -> float:
    """Seconds for which this process retries."""
    return float(os.environ.get(PATIENCE_VARIABLE) or DEFAULT_PATIENCE_S)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Retry for this long inside the block, here and in processes that are started there.

    Of nested blocks the outermost counts: a loop speaks for its stages.
    """
    if _is_set.is_set():
        yield
        return
    _is_set.set()
    try:
        with environment({PATIENCE_VARIABLE: str(seconds)}):
            yield
    finally:
        _is_set.clear()


_is_set = threading.Event()
_ending = threading.Event()


def stop_waiting() -> None:
    """Let this process give up soon, because it was told to end."""
    _ending.set()


def resume_waiting() -> None:
    """Undo `stop_waiting`, in a process that runs one command after the other."""
    _ending.clear()


@contextlib.contextmanager
def hurry() -> Iterator[None]:
    """Retry for seconds only inside the block, in all threads: the process is about to end."""
    was_set = _ending.is_set()
    _ending.set()
    try:
        yield
    finally:
        if not was_set:
            _ending.clear()


def _fraction() -> float:
    # Not `random.random` itself: pickling it includes its state, and all workers that a store is
    # sent to would then draw the same waits.
    return random.random()


def _sleep(seconds: float) -> None:
    """Wait; not at all in a process that was told to end while it waited."""
    if _ending.is_set():
        time.sleep(min(seconds, 0.2))
    else:
        _ending.wait(seconds)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to retry, and how long to wait in between."""

    base_s: float = 0.1
    """Upper bound of the wait before the second try; doubles with each further try."""

    cap_s: float = 10.0
    """Upper bound of any wait, and so of the time lost after storage is back."""

    total_s: float | None = None
    """No try starts later than this after the first one; calls themselves may be slow to fail.
    None: the patience of the process."""

    sleep: Callable[[float], None] = _sleep
    """Function that waits."""

    fraction: Callable[[], float] = _fraction
    """Draws the fraction of the upper bound to wait, in [0, 1)."""

    clock: Callable[[], float] = time.monotonic
    """Monotonic clock in seconds."""

    def wait_s(self, tries: int) -> float:
        """Draw the wait after this many tries."""
        return self.fraction() * min(self.cap_s, self.base_s * 2.0 ** min(tries - 1, 30))

    @property
    def limit_s(self) -> float:
        """Seconds after which the last try begins."""
        limit_s = patience_s() if self.total_s is None else self.total_s
        return min(limit_s, HURRY_S) if _ending.is_set() else limit_s


def was_away_within(seconds: float) -> bool:
    """Whether a storage was away, as far as this process knows, so short a time ago."""
    now = time.monotonic()
    return any(now - outage.last_failure < seconds for outage in _outages.values())


@dataclass
class _Outage:
    """What this process knows of the health of one bucket or file system."""

    has_answered: bool = False
    """Whether it ever answered."""

    since: float | None = None
    """When the first request of those failed that have failed since the last success."""

    last_failure: float = float("-inf")
    told: float | None = None
    """When the last line about the current outage was written."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    def failed(self, began: float, now: float) -> None:
        """Record a try that failed, of a request that began at `began`."""
        with self.lock:
            self.since = began if self.since is None else self.since
            self.last_failure = now

    def answered(self) -> float | None:
        """Record an answer; returns when the outage began if one was reported and is now over."""
        if self.has_answered and self.since is None:
            return None
        with self.lock:
            self.has_answered = True
            since, self.since = self.since, None
            was_told, self.told = self.told is not None, None
            return since if was_told else None

    def lasted(self, now: float) -> float:
        """Seconds since the current outage began; 0 if there is none."""
        since = self.since
        return 0.0 if since is None else now - since

    def is_due(self, now: float) -> bool:
        """Whether to write a line now; at most one thread gets True."""
        with self.lock:
            if self.told is not None and now - self.told < _SPEAK_EVERY_S:
                return False
            self.told = now
            return True


_outages: dict[str, _Outage] = {}
_MAX_KNOWN = 1000


def _outage_of(url: str) -> tuple[str, _Outage]:
    """Return the store that a URL lies in, and what is known of it."""
    scheme, separator, rest = url.partition("://")
    name = f"{scheme}://{rest.partition('/')[0]}" if separator else url.rpartition("/")[0]
    known = _outages.get(name)
    if known is not None:
        return name, known
    if len(_outages) >= _MAX_KNOWN:
        _outages.clear()
    return name, _outages.setdefault(name, _Outage())


def retry(call: Callable[[], T], url: str, classify: ErrorClassifier, policy: RetryPolicy) -> T:
    """Call until it succeeds, fails permanently, or patience ends.

    Args:
        call: The request; it must be safe to repeat.
        url: Subject of the request, for messages.
        classify: See `ErrorClassifier`. consomme's own errors are always final.
        policy: How long to retry.

    Raises:
        StorageAwayError: Patience ended; the last try failed with a transient error.
        RecipeError: The host's name does not exist, and was never reached by this run.
    """
    name, outage = _outage_of(url)
    start, tries = policy.clock(), 0
    while True:
        tries += 1
        try:
            result = call()
        except ConsommeError:
            raise
        except Exception as error:
            final, now = classify(error), policy.clock()
            if final is None:
                outage.failed(start, now)
            elif not (isinstance(final, RecipeError) and _may_settle(outage, now, policy)):
                # A refusal is an answer, too.
                _answered(name, outage, policy)
                if final is error:
                    raise
                raise final from error
            spent_s = now - start
            _give_up(error, url, outage, tries, spent_s, policy)
            asked_s = getattr(error, "after_s", 0.0)
            wait_s = min(max(policy.wait_s(tries), asked_s), max(0.0, policy.limit_s - spent_s))
            _tell(error, name, outage, spent_s, policy)
        else:
            _answered(name, outage, policy)
            return result
        policy.sleep(wait_s)


def _may_settle(outage: _Outage, now: float, policy: RetryPolicy) -> bool:
    """Whether a refusal may come from a server that is only just back."""
    is_away = outage.since is not None
    return is_away and now - outage.last_failure < min(SETTLE_S, policy.limit_s / 2)


def _answered(name: str, outage: _Outage, policy: RetryPolicy) -> None:
    since = outage.answered()
    if since is not None:
        logger.info("storage %s is back after %.0f s", name, policy.clock() - since)


def _give_up(
    error: Exception, url: str, outage: _Outage, tries: int, spent_s: float, policy: RetryPolicy
) -> None:
    """Raise if there is no point in another try."""
    host = _unknown_host(error)
    is_new = not outage.has_answered and not os.environ.get(KNOWN_VARIABLE)
    if host and is_new and spent_s >= min(UNKNOWN_HOST_S, policy.limit_s):
        raise RecipeError(
            f"{url}: the host of the storage cannot be resolved, and was never reached before;"
            " check the spelling of the endpoint (AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST,"
            " HF_ENDPOINT) and"
            f" the name server of this machine. The last try ended with {describe(error)}"
        ) from error
    limit_s = policy.limit_s
    away_s = outage.lasted(policy.clock())
    # Who asks late in an outage that others have waited for need not wait as long again.
    if spent_s < limit_s and not (away_s >= limit_s and spent_s >= limit_s / _LATE):
        return
    raise StorageAwayError(
        f"{url}: gave up after {tries} tries in {spent_s:.0f} s"
        f" (storage.patience_s={policy.limit_s:g}); the last one ended with {describe(error)}."
        " The storage is overloaded or cannot be reached; run the same command again later, it"
        " resumes where it stopped"
    ) from error


def _tell(
    error: Exception, name: str, outage: _Outage, spent_s: float, policy: RetryPolicy
) -> None:
    """Say that storage is away, now and then."""
    if spent_s < _SPEAK_AFTER_S or not outage.is_due(policy.clock()):
        return
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + policy.limit_s - spent_s))
    logger.warning(
        "storage %s is away since %.0f s: %s; retrying until %s (storage.patience_s=%g)",
        name,
        max(spent_s, outage.lasted(policy.clock())),
        describe(error),
        until,
        policy.limit_s,
    )


def _unknown_host(error: BaseException | None) -> bool:
    """Whether a name could not be resolved."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, socket.gaierror | urllib3.exceptions.NameResolutionError):
            return True
        inner = getattr(current, "kwargs", {})
        reasons = [getattr(current, "reason", None), *getattr(current, "args", ())]
        reasons += [inner.get("error")] if isinstance(inner, dict) else []
        queue += [one for one in reasons if isinstance(one, BaseException)]
        queue += [current.__cause__, current.__context__]
    return False


def is_transient_status(status: int) -> bool:
    """Check whether a request that failed with this HTTP status may succeed on retry."""
    # 409: two concurrent writes. A response to HEAD has no more detail than the status.
    return status in (408, 409, 429) or (status >= 500 and status != 501)


def describe(error: BaseException) -> str:
    """Format the type and text of an error on one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")
