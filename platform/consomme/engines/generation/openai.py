"""Generate texts with a model behind OpenAI's HTTP interface: one's own server, or a service.

Images are sent as PNG inside the request: it is lossless, every server reads it, and nothing has to
be reachable from the server. A problem with one request costs that request; a problem with the
server is retried with exponential backoff, and then loses the engine, so that the unit is done
later. A timeout is attributed to the request if the server still answers otherwise, and to the
server if it does not. Special tokens in a text are left to the server: their names are not known
here.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Literal

from PIL import Image

from consomme.base.errors import ClusterError, EngineLostError, RecipeError
from consomme.base.sample import Turn, printable
from consomme.base.secrets import written
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    QueueLoad,
    Request,
    Sampling,
    check_unguided,
)

_REQUEST_ERRORS = (400, 413, 415, 422)
"""Status codes that say that this request is wrong."""

_RECIPE_ERRORS = (401, 403, 404, 405)
"""Status codes that say that url, model or key is wrong."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_ALIVE_TIMEOUT_S = 10.0
"""A live server lists its models within this time."""


class OpenAIEngine:
    """Sends requests to one server, several at a time."""

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
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """Create a client; nothing is sent yet.

        Args:
            url: Base URL of the interface, `…/v1`.
            model: The model's name on the server.
            sampling: How tokens are chosen.
            api_key_env: Environment variable that holds the API key; None for a server without.
            concurrency: Maximum number of concurrent requests.
            deadline_s: Time limit of one answer.
            max_retries: Maximum number of retries of a request.
            detail: Image resolution that a service uses.
            template: Options of the chat template, sent with every request if there are any, as
                vLLM and SGLang take them.

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
        self._more = {"extra_body": {"chat_template_kwargs": dict(template)}} if template else {}
        self.version = f"openai {openai.__version__}, {written(model)}"
        self._openai = openai
        # It logs every single request otherwise.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        # Retries are ours: the client's do not cover malformed answers or the time limit.
        self._client: Any = openai.OpenAI(
            base_url=url,
            api_key=key,
            max_retries=0,
            timeout=openai.Timeout(deadline_s, connect=min(10.0, deadline_s)),
        )
        self._executor = ThreadPoolExecutor(concurrency, "http-engine")
        self._closed = threading.Event()
        self._count_lock = threading.Lock()
        self._num_running = self._num_total = 0

    def generate(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Generate texts; see `GenerationEngine.generate`."""
        check_unguided(requests, "OpenAI's interface")
        if any(request.pattern is not None for request in requests):
            raise RecipeError(
                "OpenAI's interface cannot make a whole text match a pattern; generate with"
                " {name: vllm} or {name: transformers}"
            )
        if self._closed.is_set():
            raise EngineLostError("the engine was closed")
        with self._count_lock:
            self._num_total += len(requests)
        futures: list[Future[Generation | GenerationFailure]] = []
        try:
            for request in requests:
                futures.append(self._executor.submit(self._run, request))
            return [future.result() for future in futures]
        except (CancelledError, RuntimeError) as error:
            # An executor that was shut down meanwhile raises RuntimeError.
            if isinstance(error, RuntimeError) and not self._closed.is_set():
                raise
            raise EngineLostError("the engine was closed") from error
        finally:
            # If the call failed, requests that have not started are not sent.
            dropped = len(requests) - len(futures) + sum(future.cancel() for future in futures)
            with self._count_lock:
                self._num_total -= dropped

    def queue_load(self) -> QueueLoad:
        """Return how many requests are being answered, and how many wait."""
        with self._count_lock:
            waiting = self._num_total - self._num_running
            return QueueLoad(running=self._num_running, waiting=waiting)

    def close(self) -> None:
        """Send nothing more; waiting callers get an `EngineLostError`."""
        self._closed.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _run(self, request: Request) -> Generation | GenerationFailure:
        with self._count_lock:
            self._num_running += 1
        try:
            return self._send_with_retries(request)
        finally:
            with self._count_lock:
                self._num_running -= 1
                self._num_total -= 1

    def _send_with_retries(self, request: Request) -> Generation | GenerationFailure:
        """Send one request until there is an answer."""
        if request.is_document:
            detail = (
                "found a document, a text with images that is no conversation; a server of chats"
                " does not continue one, so use {name: transformers} or {name: vllm}"
            )
            return GenerationFailure(reason="conversation_unsupported", detail=detail)
        try:
            messages = self._messages(request)
        except (OSError, ValueError, SystemError) as error:
            return GenerationFailure(
                reason="image_not_encodable", detail=f"cannot be encoded as PNG: {error}"
            )
        last_error = ""
        for attempt in range(self.max_retries + 1):
            if self._closed.is_set():
                raise EngineLostError("the engine was closed")
            start = time.monotonic()
            try:
                return self._send(messages, request)
            except self._openai.APITimeoutError as error:
                last_error, retry_after = str(error), None
                # Connecting has a shorter time limit, which says nothing about the request.
                if time.monotonic() - start >= self.deadline_s:
                    return self._timeout_failure()
            except self._openai.APIStatusError as error:
                failure = self._status_failure(error)
                if failure is not None:
                    return failure
                last_error = _describe(error)
                retry_after = error.response.headers.get("retry-after")
            except (self._openai.APIError, _MalformedAnswerError, ValueError) as error:
                last_error, retry_after = f"{type(error).__name__}: {error}", None
            if attempt < self.max_retries:
                self._closed.wait(_pause_s(attempt, retry_after))
        # Not an `EngineLostError`: nothing is broken here, and a new process would not help.
        raise ClusterError(
            f"{self.url} has not answered after {self.max_retries + 1} attempts; the last one:"
            f" {printable(last_error)}. Run the same command again when it is back"
        )

    def _send(
        self, messages: list[dict[str, Any]], request: Request
    ) -> Generation | GenerationFailure:
        sampling = self.sampling
        answer = self._client.chat.completions.create(
            model=self.model,
            messages=messages,
            max_tokens=request.max_tokens or sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed,
            stop=list(sampling.stop) or None,
            **self._more,
        )
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise _MalformedAnswerError("the answer has no text in it")
        reason, text = choices[0].finish_reason, choices[0].message.content
        if reason not in ("stop", "length"):
            detail = f"the server ended the text with {reason!r}"
            return GenerationFailure(reason="model_output_withheld", detail=detail)
        num_tokens = getattr(answer.usage, "completion_tokens", None)
        if num_tokens is None:
            raise RecipeError(
                f"{self.url} does not report how many tokens it generated"
                " (usage.completion_tokens); consomme needs a server that does"
            )
        return Generation(text=text or "", num_tokens=num_tokens, finish_reason=reason)

    def _status_failure(self, error: Any) -> GenerationFailure | None:
        """Interpret an HTTP error; None if a retry of the same request may succeed.

        Raises:
            RecipeError: No request can succeed.
        """
        if error.status_code in _REQUEST_ERRORS:
            return GenerationFailure(reason="model_refused", detail=printable(_describe(error)))
        if error.status_code in _RECIPE_ERRORS:
            raise RecipeError(
                f"{self.url} does not serve {self.model!r} to us: {printable(_describe(error))};"
                " check url, model and api_key_env"
            )
        return None

    def _timeout_failure(self) -> GenerationFailure:
        """Return the failure of a request that timed out on a live server.

        Raises:
            ClusterError: The server is not alive.
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
            self._client.with_options(timeout=_ALIVE_TIMEOUT_S).models.list()
        except self._openai.APIStatusError:
            return True
        except (self._openai.OpenAIError, ValueError):
            return False
        return True

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        """Convert a conversation to chat messages, each image where it stands."""
        return [
            {"role": turn.role, "content": self._content(turn, request.images)}
            for turn in request.placed_turns
        ]

    def _content(self, turn: Turn, images: Sequence[Image.Image]) -> str | list[dict[str, Any]]:
        if not turn.image_indices:
            return turn.text
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                image_url = {"url": _data_url(images[part.index]), "detail": self.detail}
                parts.append({"type": "image_url", "image_url": image_url})
        # Some servers refuse a message without a text.
        return parts if turn.text else [*parts, {"type": "text", "text": ""}]


class _MalformedAnswerError(Exception):
    """The server's answer is complete, but not in OpenAI's format."""


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    # Fast and a little larger: the pixels are the same.
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _describe(error: Any) -> str:
    return f"HTTP {error.status_code}: {error.message}"


def _pause_s(attempt: int, retry_after: str | None) -> float:
    """Return how long to wait: the server's `Retry-After`, or exponential backoff with jitter."""
    if retry_after is not None:
        try:
            wanted = float(retry_after)
        except ValueError:
            date = email.utils.parsedate_to_datetime(retry_after) if _is_date(retry_after) else None
            wanted = date.timestamp() - time.time() if date is not None else 0.0
        if wanted > 0:
            return min(wanted, _LONGEST_PAUSE_S)
    longest = min(_FIRST_PAUSE_S * 2.0**attempt, _LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)


def _is_date(text: str) -> bool:
    return email.utils.parsedate(text) is not None
