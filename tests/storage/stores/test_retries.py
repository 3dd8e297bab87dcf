"""Retries: waits, limits, and final errors."""

import itertools
import logging
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from consomme.base.errors import RecipeError, StorageAwayError
from consomme.storage.stores.retries import (
    KNOWN_VARIABLE,
    RetryPolicy,
    patience,
    patience_s,
    resume_waiting,
    retry,
    stop_waiting,
)

_numbers = itertools.count()


def through(
    call: Callable[[], Any], url: str = "", classify: Any = None, **policy: Any
) -> tuple[Any, list[float]]:
    """Retry a call without waiting; return its result and the waits."""
    waits: list[float] = []
    options = {"sleep": waits.append, "fraction": lambda: 1.0, "clock": lambda: sum(waits)}
    classify = classify or _classify_error
    # What a process knows of a bucket would carry over from test to test.
    url = url or f"s3://b{next(_numbers)}/k"
    try:
        result = retry(call, url, classify, RetryPolicy(**{**options, **policy}))
    except Exception as error:  # noqa: BLE001
        return error, waits
    return result, waits


def _classify_error(error: Exception) -> Exception | None:
    return None if isinstance(error, ConnectionError | TimeoutError) else error


def failing(times: int) -> Callable[[], str]:
    """A call that fails this many times before it succeeds."""
    calls = itertools.count(1)

    def call() -> str:
        if next(calls) <= times:
            raise ConnectionResetError("reset\nby peer")
        return "done"

    return call


def test_waits_double_up_to_a_cap_and_end_with_patience() -> None:
    assert through(failing(0)) == ("done", [])
    assert through(failing(3)) == ("done", [0.1, 0.2, 0.4])
    assert through(failing(6), cap_s=1.0) == ("done", [0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    error, waits = through(failing(1000), total_s=60.0)
    assert waits[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    # The last try is made when patience ends, not a wait before it.
    assert sum(waits) == pytest.approx(60)
    assert isinstance(error, StorageAwayError)
    assert error.exit_code == 75
    assert f"/k: gave up after {len(waits) + 1} tries in 60 s" in str(error)
    assert "storage.patience_s=60" in str(error)
    assert "ConnectionResetError: reset by peer" in str(error)


def test_patience_is_a_time_not_a_number_of_tries() -> None:
    """A try that takes a minute counts as a minute."""
    now = [0.0]

    def slow() -> None:
        now[0] += 61
        raise TimeoutError("read")

    error, waits = through(slow, clock=lambda: now[0], total_s=300.0)
    assert isinstance(error, StorageAwayError)
    assert len(waits) == 4


def test_the_patience_of_the_process_is_the_default() -> None:
    with patience(7.0):
        error, waits = through(failing(1000))
        assert sum(waits) == pytest.approx(7)
        assert "storage.patience_s=7" in str(error)
        with patience(100.0):
            assert patience_s() == 7.0, "the outermost block counts"
    assert patience_s() == 600.0


def test_who_asks_late_in_an_outage_does_not_wait_as_long_again() -> None:
    url = "s3://late/k"
    error, first = through(failing(1000), url=url, total_s=600.0)
    assert isinstance(error, StorageAwayError)
    begun = sum(first)
    waits: list[float] = []
    error, _ = through(
        failing(1000), url=url, total_s=600.0, sleep=waits.append, clock=lambda: begun + sum(waits)
    )
    assert isinstance(error, StorageAwayError)
    assert 30 <= sum(waits) <= 41
    # An answer ends the outage, and the next one is waited for as long as the first.
    assert through(failing(0), url=url)[0] == "done"
    waits = []
    through(
        failing(1000), url=url, total_s=600.0, sleep=waits.append, clock=lambda: begun + sum(waits)
    )
    assert sum(waits) == pytest.approx(600)


def test_a_line_says_what_is_away_since_when_and_until_when(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="consomme"):
        assert through(failing(20), url="s3://away/k", total_s=600.0)[0] == "done"
    lines = [record.getMessage() for record in caplog.records]
    away = [line for line in lines if "is away since" in line]
    assert re.fullmatch(
        r"storage s3://away is away since 3 s: ConnectionResetError: reset by peer;"
        r" retrying until \d\d:\d\d:\d\d \(storage.patience_s=600\)",
        away[0],
    )
    assert len(away) == 1 + 142 // 40, "one line in half a minute, and waits of ten seconds"
    assert lines[-1] == "storage s3://away is back after 143 s"
    caplog.clear()
    through(failing(3), url="s3://away/k")
    assert not caplog.records, "a blip is no outage"


def test_refusals_are_final_except_right_after_an_outage() -> None:
    refused = RecipeError("403")

    def classify(error: Exception) -> Exception | None:
        return None if isinstance(error, ConnectionError) else refused

    def calls(*errors: Exception | None) -> Callable[[], str]:
        rest = list(errors)

        def call() -> str:
            error = rest.pop(0) if len(rest) > 1 else rest[0]
            if error is not None:
                raise error
            return "done"

        return call

    away, denied = ConnectionError("away"), PermissionError("denied")
    options = {"classify": classify, "total_s": 600.0}
    assert through(calls(denied, None), url="s3://x1/k", **options) == (refused, [])
    # A gateway that starts does not know its users yet.
    assert through(calls(away, denied, None), url="s3://x2/k", **options)[0] == "done"
    error, waits = through(calls(away, denied), url="s3://x3/k", **options)
    assert error is refused
    assert 20 <= sum(waits) <= 31


def test_a_host_that_does_not_exist_is_answered_in_seconds() -> None:
    def unknown() -> None:
        raise ConnectionError("no connection") from socket.gaierror(-2, "Name not known")

    error, waits = through(unknown, url="s3://nowhere/k")
    assert isinstance(error, RecipeError)
    assert sum(waits) <= 13
    assert "check the spelling of the endpoint" in str(error)


def test_a_host_that_was_reached_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name servers fail as well; and a worker trusts what its driver has reached."""

    def unknown() -> None:
        raise ConnectionError("no connection") from socket.gaierror(-2, "Name not known")

    assert through(failing(0), url="s3://known/k")[0] == "done"
    error, waits = through(unknown, url="s3://known/k", total_s=600.0)
    assert isinstance(error, StorageAwayError)
    assert sum(waits) == pytest.approx(600)
    monkeypatch.setenv(KNOWN_VARIABLE, "1")
    error, waits = through(unknown, url="s3://in-worker/k", total_s=600.0)
    assert isinstance(error, StorageAwayError)


def test_a_process_that_is_told_to_end_does_not_wait() -> None:
    threading.Timer(0.3, stop_waiting).start()
    began = time.monotonic()
    try:
        with pytest.raises(StorageAwayError):
            retry(failing(10_000), "s3://ending/k", _classify_error, RetryPolicy())
    finally:
        resume_waiting()
    assert time.monotonic() - began < 8


def test_an_error_that_stays_is_not_tried_again() -> None:
    def call() -> None:
        raise KeyError("x")

    assert isinstance(through(call)[0], KeyError)
    assert through(call)[1] == []


def test_waits_are_drawn_anew_by_everyone_a_policy_is_sent_to() -> None:
    copy = pickle.loads(pickle.dumps(RetryPolicy()))
    assert copy.wait_s(5) != RetryPolicy().wait_s(5)
    assert 0 <= copy.wait_s(1) < 0.1
