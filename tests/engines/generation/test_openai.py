"""A server that misbehaves: what is tried again, what costs a request, what loses the engine."""

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
    Load,
    Request,
    Sampling,
)

HELLO = Generation(text="hello", num_tokens=2, finish_reason="stop")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """Says hello to everybody, unless a test puts a trick before it."""
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
    """Answer questions with a text in them in another way, the first few times."""
    left = [times]

    def trick(handler: Any, body: dict[str, Any]) -> bool:
        if left[0] <= 0 or text not in to_request(body).turns[-1].content:
            return False
        left[0] -= 1
        handler.reply(*reply, **headers)
        handler.close_connection = "length" in headers
        return True

    server.tricks.insert(0, trick)


def test_closed_while_it_takes_requests_it_says_so(server: ChatServer) -> None:
    writer = opened(server)
    some = [Request.about(f"number {number}?") for number in range(6)]

    class Requests(list[Request]):
        """As if another thread closed the writer after three of them."""

        num_looks = 0

        def __iter__(self) -> Iterator[Request]:
            self.num_looks += 1
            yield from self[:3]
            if self.num_looks == 2:
                writer.close()
            yield from self[3:]

    with pytest.raises(EngineLostError, match="the engine was closed"):
        writer.write(Requests(some))
    assert writer.load() == Load(running=0, waiting=0)


def test_what_is_sent_is_what_was_asked(server: ChatServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    heard: list[str] = []
    server.tricks.insert(0, lambda handler, body: heard.append(handler.headers["Authorization"]))
    writer = OpenAIEngine(
        server.url,
        "nano",
        Sampling(max_tokens=7, temperature=0.5, top_p=0.9, stop=("x",)),
        api_key_env="SERVER_KEY",
        detail="low",
    )
    image = Image.effect_noise((30, 20), 80).convert("RGB")
    assert writer.write([Request.about("what?", image, seed=3)]) == [HELLO]
    assert writer.write([Request.about("and?")]) == [HELLO]
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
    received = to_request(first).image
    assert received is not None
    assert received.tobytes() == image.tobytes(), "no pixel changes on the way"
    assert second["messages"] == [{"role": "user", "content": "and?"}]
    assert heard == ["Bearer secret"] * 2
    assert logging.getLogger("httpx2").level == logging.WARNING


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408, 409])
def test_passing_troubles_are_tried_again(server: ChatServer, status: int) -> None:
    fails(server, 2, status, {"error": {"message": "busy"}})
    assert opened(server, max_retries=2).write([Request.about("what?")]) == [HELLO]
    assert len(server.asked) == 3


def test_the_server_says_how_long_to_wait(server: ChatServer) -> None:
    fails(server, 1, 429, {"error": {"message": "later"}}, Retry_After="0.7")
    begun = time.monotonic()
    assert opened(server).write([Request.about("what?")]) == [HELLO]
    assert time.monotonic() - begun >= 0.7


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ("12", 12, 12),
        ("100000", 60, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.08),
        ("soon", 0, 0.08),
        (None, 0.04, 0.08),
    ],
)
def test_pauses_are_those_asked_for_or_grow(asked: str | None, low: float, high: float) -> None:
    assert low <= _pause_s(3, asked) <= high


def test_a_cut_answer_is_asked_for_again(server: ChatServer) -> None:
    fails(server, 1, 200, b'{"choices": [{"mess', length="5000")
    fails(server, 1, 200, b'{"choices": [{"mess')
    fails(server, 1, 200, {"choices": []})
    assert opened(server).write([Request.about("what?")]) == [HELLO]
    assert len(server.asked) == 4


def test_retries_that_are_used_up_lose_the_engine(server: ChatServer) -> None:
    fails(server, 10**6, 503, {"error": {"message": "out of order"}})
    with pytest.raises(ClusterError, match="after 3 attempts; the last one: HTTP 503"):
        opened(server, max_retries=2).write([Request.about("what?")] * 3)


def test_nobody_there_loses_the_engine() -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(ClusterError, match="after 2 attempts"):
        OpenAIEngine(url, "nano", max_retries=1).write([Request.about("what?")])


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_refuses_costs_itself(server: ChatServer, status: int) -> None:
    fails(server, 10**6, status, {"error": {"message": "no such picture"}}, text="bad")
    writer = opened(server)
    found = writer.write([Request.about(text) for text in ("one", "bad", "two")])
    assert [found[0], found[2]] == [HELLO, HELLO]
    assert isinstance(found[1], GenerationFailure)
    assert found[1].reason == "model_refused"
    assert "no such picture" in found[1].detail
    assert len(server.asked) == 3, "it would be refused again"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_the_recipes_fault(server: ChatServer, status: int) -> None:
    fails(server, 10**6, status, {"error": {"message": "who are you?"}})
    with pytest.raises(RecipeError, match="check url, model and api_key_env"):
        opened(server).write([Request.about("what?")])
    assert len(server.asked) == 1


def test_a_key_that_is_not_set_is_named(server: ChatServer) -> None:
    with pytest.raises(RecipeError, match="NO_SUCH_KEY is not set"):
        opened(server, api_key_env="NO_SUCH_KEY")


def test_a_filtered_text_is_withheld(server: ChatServer) -> None:
    fails(server, 1, 200, answer("", 0, "content_filter"))
    (found,) = opened(server).write([Request.about("what?")])
    assert isinstance(found, GenerationFailure)
    assert found.reason == "model_output_withheld"


def test_a_question_without_an_answer_costs_itself(server: ChatServer) -> None:
    def silent(handler: Any, body: dict[str, Any]) -> bool:
        return "hard" in to_request(body).turns[-1].content and server.ends.wait(20)

    server.tricks.insert(0, silent)
    found = opened(server, deadline_s=0.5).write(
        [Request.about(text) for text in ("easy", "hard", "easy")]
    )
    assert [found[0], found[2]] == [HELLO, HELLO]
    assert isinstance(found[1], GenerationFailure)
    assert (found[1].reason, found[1].detail) == ("model_timeout", "no answer after 0.5 s")


def test_a_server_that_answers_nothing_is_lost(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consomme.engines.generation.openai._ALIVE_S", 0.5)
    monkeypatch.setattr(
        "tests.support.chat_server._Handler.do_GET", lambda handler: server.ends.wait(20)
    )
    server.tricks.insert(0, lambda handler, body: server.ends.wait(20))
    with pytest.raises(ClusterError, match="not even with the list of its models"):
        opened(server, deadline_s=0.5).write([Request.about("what?")])
