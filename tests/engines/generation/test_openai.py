"""A server that misbehaves: what is retried, what fails a request, what loses the engine."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from tests.support.chat_server import ChatServer, answer, serving, to_request

from consomme.base.errors import ClusterError, EngineLostError, RecipeError
from consomme.engines.generation.openai import OpenAIEngine, _pause_s
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    QueueLoad,
    Request,
    Sampling,
)

HELLO = Generation(text="hello", num_tokens=2, finish_reason="stop")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A server that answers hello, unless a test inserts a trick before that."""
    with serving() as made:
        made.tricks.append(
            lambda handler, body: handler.reply(200, answer("hello", 2, "stop")) or True
        )
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consomme.engines.generation.openai._FIRST_PAUSE_S", 0.01)


def opened(server: ChatServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(server.url, "nano", Sampling(max_tokens=7), **options)


def fails(server: ChatServer, times: int, *reply: Any, text: str = "", **headers: str) -> None:
    """Answer the first few requests that contain a text with this reply."""
    left = [times]

    def trick(handler: Any, body: dict[str, Any]) -> bool:
        if left[0] <= 0 or text not in to_request(body).turns[-1].content:
            return False
        left[0] -= 1
        handler.reply(*reply, **headers)
        handler.close_connection = "length" in headers
        return True

    server.tricks.insert(0, trick)


def test_closing_while_requests_are_submitted_raises(server: ChatServer) -> None:
    engine = opened(server)
    some = [Request.of_prompt(f"number {number}?") for number in range(6)]

    class Requests(list[Request]):
        """Closes the engine after three of them, as another thread might."""

        num_looks = 0

        def __iter__(self) -> Iterator[Request]:
            self.num_looks += 1
            yield from self[:3]
            if self.num_looks == 2:
                engine.close()
            yield from self[3:]

    with pytest.raises(EngineLostError, match="the engine was closed"):
        engine.generate(Requests(some))
    assert engine.queue_load() == QueueLoad(running=0, waiting=0)


def test_the_request_body_holds_the_request(server: ChatServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    heard: list[str] = []
    server.tricks.insert(0, lambda handler, body: heard.append(handler.headers["Authorization"]))
    engine = OpenAIEngine(
        server.url,
        "nano",
        Sampling(max_tokens=7, temperature=0.5, top_p=0.9, stop=("x",)),
        api_key_env="SERVER_KEY",
        detail="low",
    )
    image = Image.effect_noise((30, 20), 80).convert("RGB")
    assert engine.generate([Request.of_prompt("what?", [image], seed=3)]) == [HELLO]
    assert engine.generate([Request.of_prompt("and?")]) == [HELLO]
    first, second = server.asked
    assert {k: first[k] for k in ("model", "max_tokens", "temperature", "top_p", "seed")} == {
        "model": "nano",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
    }
    assert first["stop"] == ["x"]
    assert first["messages"][0]["content"][0]["image_url"]["detail"] == "low"
    received = to_request(first).images[0]
    assert received is not None
    assert received.tobytes() == image.tobytes(), "no pixel changes on the way"
    assert second["messages"] == [{"role": "user", "content": "and?"}]
    assert heard == ["Bearer secret"] * 2
    assert logging.getLogger("httpx2").level == logging.WARNING


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408, 409])
def test_transient_errors_are_retried(server: ChatServer, status: int) -> None:
    fails(server, 2, status, {"error": {"message": "busy"}})
    assert opened(server, max_retries=2).generate([Request.of_prompt("what?")]) == [HELLO]
    assert len(server.asked) == 3


def test_retry_after_is_respected(server: ChatServer) -> None:
    fails(server, 1, 429, {"error": {"message": "later"}}, Retry_After="0.7")
    begun = time.monotonic()
    assert opened(server).generate([Request.of_prompt("what?")]) == [HELLO]
    assert time.monotonic() - begun >= 0.7


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [
        ("12", 12, 12),
        ("100000", 60, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.08),
        ("soon", 0, 0.08),
        (None, 0.04, 0.08),
    ],
)
def test_pauses_follow_retry_after_or_back_off(
    retry_after: str | None, low: float, high: float
) -> None:
    assert low <= _pause_s(3, retry_after) <= high


def test_a_malformed_answer_is_retried(server: ChatServer) -> None:
    fails(server, 1, 200, b'{"choices": [{"mess', length="5000")
    fails(server, 1, 200, b'{"choices": [{"mess')
    fails(server, 1, 200, {"choices": []})
    assert opened(server).generate([Request.of_prompt("what?")]) == [HELLO]
    assert len(server.asked) == 4


def test_exhausted_retries_lose_the_engine(server: ChatServer) -> None:
    fails(server, 10**6, 503, {"error": {"message": "out of order"}})
    with pytest.raises(ClusterError, match="after 3 attempts; the last one: HTTP 503"):
        opened(server, max_retries=2).generate([Request.of_prompt("what?")] * 3)


def test_a_refused_connection_loses_the_engine() -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(ClusterError, match="after 2 attempts"):
        OpenAIEngine(url, "nano", max_retries=1).generate([Request.of_prompt("what?")])


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_refuses_fails_alone(server: ChatServer, status: int) -> None:
    fails(server, 10**6, status, {"error": {"message": "no such picture"}}, text="bad")
    engine = opened(server)
    found = engine.generate([Request.of_prompt(text) for text in ("one", "bad", "two")])
    assert [found[0], found[2]] == [HELLO, HELLO]
    assert isinstance(found[1], GenerationFailure)
    assert found[1].reason == "model_refused"
    assert "no such picture" in found[1].detail
    assert len(server.asked) == 3, "it would be refused again"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_a_recipe_error(server: ChatServer, status: int) -> None:
    fails(server, 10**6, status, {"error": {"message": "who are you?"}})
    with pytest.raises(RecipeError, match="check url, model and api_key_env"):
        opened(server).generate([Request.of_prompt("what?")])
    assert len(server.asked) == 1


def test_a_key_that_is_not_set_is_named(server: ChatServer) -> None:
    with pytest.raises(RecipeError, match="NO_SUCH_KEY is not set"):
        opened(server, api_key_env="NO_SUCH_KEY")


def test_a_filtered_text_is_withheld(server: ChatServer) -> None:
    fails(server, 1, 200, answer("", 0, "content_filter"))
    (found,) = opened(server).generate([Request.of_prompt("what?")])
    assert isinstance(found, GenerationFailure)
    assert found.reason == "model_output_withheld"


def test_a_request_that_times_out_fails_alone(server: ChatServer) -> None:
    def silent(handler: Any, body: dict[str, Any]) -> bool:
        return "hard" in to_request(body).turns[-1].content and server.ends.wait(20)

    server.tricks.insert(0, silent)
    found = opened(server, deadline_s=0.5).generate(
        [Request.of_prompt(text) for text in ("easy", "hard", "easy")]
    )
    assert [found[0], found[2]] == [HELLO, HELLO]
    assert isinstance(found[1], GenerationFailure)
    assert (found[1].reason, found[1].detail) == ("model_timeout", "no answer after 0.5 s")


def test_a_server_that_answers_nothing_loses_the_engine(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consomme.engines.generation.openai._ALIVE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(
        "tests.support.chat_server._Handler.do_GET", lambda handler: server.ends.wait(20)
    )
    server.tricks.insert(0, lambda handler, body: server.ends.wait(20))
    with pytest.raises(ClusterError, match="not even with the list of its models"):
        opened(server, deadline_s=0.5).generate([Request.of_prompt("what?")])
