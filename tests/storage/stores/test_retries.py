"""Retries: waits, limits, and final errors."""

import itertools
import pickle
from collections.abc import Callable
from typing import Any

from consomme.base.errors import ClusterError
from consomme.storage.stores.retries import RetryPolicy, retry


def through(call: Callable[[], Any], **policy: Any) -> tuple[Any, list[float]]:
    """Retry a call without waiting; return its result and the waits."""
    waits: list[float] = []
    options = {"sleep": waits.append, "fraction": lambda: 1.0, "clock": lambda: sum(waits)}
    try:
        result = retry(call, "s3://b/k", _classify_error, RetryPolicy(**{**options, **policy}))
    except Exception as error:  # noqa: BLE001
        return error, waits
    return result, waits


def _classify_error(error: Exception) -> Exception | None:
    return None if isinstance(error, ConnectionError) else error


def failing(times: int) -> Callable[[], str]:
    """A call that fails this many times before it succeeds."""
    calls = itertools.count(1)

    def call() -> str:
        if next(calls) <= times:
            raise ConnectionResetError("reset\nby peer")
        return "done"

    return call


def test_waits_double_up_to_a_cap_and_end_after_the_last_try() -> None:
    assert through(failing(0)) == ("done", [])
    assert through(failing(3)) == ("done", [0.1, 0.2, 0.4])
    assert through(failing(6), cap_s=1.0) == ("done", [0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    error, waits = through(failing(8))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert isinstance(error, ClusterError)
    assert error.exit_code == 75
    assert "s3://b/k: gave up after 8 tries in 13 s" in str(error)
    assert "ConnectionResetError: reset by peer" in str(error)
    error, waits = through(failing(100), attempts=100, total_s=3.0)
    assert sum(waits) <= 3.0 < sum(waits) * 3


def test_an_error_that_stays_is_not_tried_again() -> None:
    def call() -> None:
        raise KeyError("x")

    assert isinstance(through(call)[0], KeyError)
    assert through(call)[1] == []


def test_waits_are_drawn_anew_by_everyone_a_policy_is_sent_to() -> None:
    copy = pickle.loads(pickle.dumps(RetryPolicy()))
    assert copy.wait_s(5) != RetryPolicy().wait_s(5)
    assert 0 <= copy.wait_s(1) < 0.1
