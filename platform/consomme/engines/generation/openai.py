"""Write texts with a model behind OpenAI's HTTP interface: one's own server, or a service.

Decisions made here. Pictures go as PNG inside the request: no loss, any server reads it, nothing
has to be reachable from there. What is wrong with one request costs that request; what is wrong
with the server is tried again with growing pauses, and then loses the engine, so that the unit is
done later. Time that runs out is laid to the request if the server answers something else
meanwhile, and to the server if it does not. Special tokens in a text are the server's to handle:
their names are not known here.
"""

from __future__ import annotations

import base64
import email.utils
import io
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Literal

from PIL import Image

from consomme.base.errors import ClusterError, EngineLostError, RecipeError
from consomme.base.sample import printable
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    Load,
    Request,
    Sampling,
)

_ABOUT_THE_REQUEST = (400, 413, 415, 422)
_ABOUT_THE_RECIPE = (401, 403, 404, 405)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_ALIVE_S = 10.0
"""How soon a server that lives lists its models."""


class OpenAIEngine:
    """Sends requests to one server, some at a time."""

    def __init__(
        self,
        url: str,
        model: str,
        sampling: Sampling | None = None,
        *,
        api_key_env: str | None = None,
        concurrency: int = 16,
        deadline_s: float = 600.0,
        max_retries: int = 8,
        detail: Literal["auto", "low", "high"] = "auto",
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: Where the interface begins, `…/v1`.
            model: The model's name there.
            sampling: How tokens are chosen.
            api_key_env: Environment variable that holds the key; None for a server without.
            concurrency: Requests on their way at once.
            deadline_s: How long one answer may take.
            max_retries: How often a request is sent again.
            detail: How closely a service looks at pictures.

        Raises:
            RecipeError: The environment variable is not set.
        """
        import openai

        key = "none" if api_key_env is None else os.environ.get(api_key_env)
        if not key:
            raise RecipeError(
                f"api_key_env: the environment variable {api_key_env} is not set on the workers;"
                " set it there, or leave api_key_env out for a server without keys"
            )
        self.url, self.model, self.sampling = url, model, sampling or Sampling()
        self.deadline_s, self.max_retries, self.detail = deadline_s, max_retries, detail
        self.version = f"openai {openai.__version__}, {model}"
        self._openai = openai
        # Trying again is done here: a broken answer and the time that is left count as well.
        # It tells of every single request otherwise.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._client: Any = openai.OpenAI(
            base_url=url,
            api_key=key,
            max_retries=0,
            timeout=openai.Timeout(deadline_s, connect=min(10.0, deadline_s)),
        )
        self._threads = ThreadPoolExecutor(concurrency, "http-writer")
        self._closed = threading.Event()
        self._count = threading.Lock()
        self._running = self._total = 0

    def write(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Answer requests; see `GenerationEngine.write`."""
        if any(request.pattern is not None for request in requests):
            raise RecipeError(
                "OpenAI's interface has no way to hold a whole text to a pattern; write with"
                " {name: vllm} or {name: transformers}"
            )
        if self._closed.is_set():
            raise EngineLostError("the engine was closed")
        with self._count:
            self._total += len(requests)
        coming: list[Future[Generation | GenerationFailure]] = []
        try:
            for request in requests:
                coming.append(self._threads.submit(self._one, request))
            return [one.result() for one in coming]
        except (CancelledError, RuntimeError) as error:
            # Threads that were shut down meanwhile take no request, and say it with a RuntimeError.
            if isinstance(error, RuntimeError) and not self._closed.is_set():
                raise
            raise EngineLostError("the engine was closed") from error
        finally:
            # Of a call that failed, what has not begun is not sent any more.
            dropped = len(requests) - len(coming) + sum(one.cancel() for one in coming)
            with self._count:
                self._total -= dropped

    def load(self) -> Load:
        """Tell how many requests are on their way, and how many wait."""
        with self._count:
            return Load(running=self._running, waiting=self._total - self._running)

    def close(self) -> None:
        """Send nothing more; waiting callers get an `EngineLostError`."""
        self._closed.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _one(self, request: Request) -> Generation | GenerationFailure:
        with self._count:
            self._running += 1
        try:
            return self._answer(request)
        finally:
            with self._count:
                self._running -= 1
                self._total -= 1

    def _answer(self, request: Request) -> Generation | GenerationFailure:
        """Send one request until there is an answer."""
        try:
            messages = self._messages(request)
        except (OSError, ValueError, SystemError) as error:
            return GenerationFailure(reason="image_not_encodable", detail=f"no PNG of it: {error}")
        trouble = ""
        for attempt in range(self.max_retries + 1):
            if self._closed.is_set():
                raise EngineLostError("the engine was closed")
            begun = time.monotonic()
            try:
                return self._send(messages, request.seed)
            except self._openai.APITimeoutError as error:
                trouble, asked = str(error), None
                # Connecting has a time limit of its own, which says nothing about the request.
                if time.monotonic() - begun >= self.deadline_s:
                    return self._late()
            except self._openai.APIStatusError as error:
                refused = self._refused(error)
                if refused is not None:
                    return refused
                trouble, asked = _said(error), error.response.headers.get("retry-after")
            except (self._openai.APIError, _BrokenAnswerError, ValueError) as error:
                trouble, asked = f"{type(error).__name__}: {error}", None
            if attempt < self.max_retries:
                self._closed.wait(_pause_s(attempt, asked))
        # Nothing here is broken, and a fresh process would fare no better.
        raise ClusterError(
            f"{self.url} has not answered after {self.max_retries + 1} attempts; the last one:"
            f" {printable(trouble)}. Run the same command again when it is back"
        )

    def _send(self, messages: list[dict[str, Any]], seed: int) -> Generation | GenerationFailure:
        sampling = self.sampling
        answer = self._client.chat.completions.create(
            model=self.model,
            messages=messages,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            stop=list(sampling.stop) or None,
        )
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise _BrokenAnswerError("the answer has no text in it")
        reason, text = choices[0].finish_reason, choices[0].message.content
        if reason not in ("stop", "length"):
            detail = f"the server ended the text with {reason!r}"
            return GenerationFailure(reason="model_output_withheld", detail=detail)
        num_tokens = getattr(answer.usage, "completion_tokens", None)
        if num_tokens is None:
            raise RecipeError(
                f"{self.url} does not say how many tokens it wrote (usage.completion_tokens);"
                " consomme needs a server that does"
            )
        return Generation(text=text or "", num_tokens=num_tokens, finish_reason=reason)

    def _refused(self, error: Any) -> GenerationFailure | None:
        """Tell what a status means; None if the same request may fare better later.

        Raises:
            RecipeError: No request will fare better.
        """
        if error.status_code in _ABOUT_THE_REQUEST:
            return GenerationFailure(reason="model_refused", detail=printable(_said(error)))
        if error.status_code in _ABOUT_THE_RECIPE:
            raise RecipeError(
                f"{self.url} does not serve {self.model!r} to us: {printable(_said(error))};"
                " check url, model and api_key_env"
            )
        return None

    def _late(self) -> GenerationFailure:
        """Time has run out: say whose fault it is.

        Raises:
            ClusterError: The server's.
        """
        if not self._is_alive():
            raise ClusterError(
                f"{self.url} does not answer, not even with the list of its models; run the same"
                " command again when it is back"
            )
        detail = f"no answer after {self.deadline_s:g} s"
        return GenerationFailure(reason="model_timeout", detail=detail)

    def _is_alive(self) -> bool:
        try:
            self._client.with_options(timeout=_ALIVE_S).models.list()
        except self._openai.APIStatusError:
            return True
        except (self._openai.OpenAIError, ValueError):
            return False
        return True

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        """Write a conversation as chat messages; the picture goes first in the first user turn."""
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": turn.content} for turn in request.turns
        ]
        if request.image is not None:
            first = next(message for message in messages if message["role"] == "user")
            picture = {"url": _data_url(request.image), "detail": self.detail}
            first["content"] = [
                {"type": "image_url", "image_url": picture},
                {"type": "text", "text": first["content"]},
            ]
        return messages


class _BrokenAnswerError(Exception):
    """The server's answer is whole, but not one."""


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    # Fast and a little larger: the pixels are the same.
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _said(error: Any) -> str:
    return f"HTTP {error.status_code}: {error.message}"


def _pause_s(attempt: int, asked: str | None) -> float:
    """How long to wait: what the server asks for, or twice as long each time, with some chance."""
    if asked is not None:
        try:
            wanted = float(asked)
        except ValueError:
            date = email.utils.parsedate_to_datetime(asked) if _is_date(asked) else None
            wanted = date.timestamp() - time.time() if date is not None else 0.0
        if wanted > 0:
            return min(wanted, _LONGEST_PAUSE_S)
    longest = min(_FIRST_PAUSE_S * 2.0**attempt, _LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)


def _is_date(text: str) -> bool:
    return email.utils.parsedate(text) is not None
