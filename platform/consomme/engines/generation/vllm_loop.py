"""Step vLLM's engine with requests of many threads, and notice when it dies or hangs.

One thread owns the engine, and steps it while there is work. Prompts are prepared in advance, just
enough of them to keep the engine busy: by a thread of their own if the engine is in another
process, but between steps if it is in this process, where a second thread that runs Python would
only compete for the interpreter's lock. A watchdog thread checks whether the engine's process lives
and whether tokens come. If not, it kills the process and fails all pending requests, which the
thread that is stuck in the engine cannot do.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from consomme.base.errors import EngineLostError
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    QueueLoad,
    Request,
)
from consomme.engines.vllm_engine import OpenedEngine, set_threads

CLOSED = "the engine was closed"

PREFETCH = 8
"""Prepared prompts beyond those that the engine has room for."""


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A request in the form that the engine takes."""

    prompt: Any
    """Output of vLLM's renderer: tokens, and the pixels of an image."""

    params: Any
    """`SamplingParams`."""


@dataclass(eq=False, kw_only=True)
class PendingRequest:
    """A request without a result yet, and the future of its result."""

    request: Request
    result: Future[Generation | GenerationFailure] = field(default_factory=Future)
    prepared: PreparedRequest | None = None
    start: float | None = None
    """Time when the engine had room for it."""


class EngineLoop:
    """Runs requests through one engine."""

    def __init__(
        self,
        opened: OpenedEngine,
        prepare: Callable[[Request], PreparedRequest | GenerationFailure],
        *,
        max_running: int,
        deadline_s: float,
        stall_s: float,
        threads: int,
    ) -> None:
        """Start the threads.

        Args:
            opened: The engine.
            prepare: Converts a request for the engine; called by one thread only.
            max_running: Maximum number of requests in one step of the engine.
            deadline_s: Time limit of one request in the engine.
            stall_s: The engine counts as hung after this long without a token.
            threads: OpenMP threads of the thread that steps the engine.
        """
        from vllm.exceptions import VLLMClientError

        self.opened, self.engine = opened, opened.llm.llm_engine
        self.deadline_s, self.stall_s, self.max_running = deadline_s, stall_s, max_running
        self._prepare, self._request_errors = prepare, (ValueError, VLLMClientError)
        self._changed = threading.Condition()
        # All of these are accessed only while `_changed` is held.
        self._waiting: deque[PendingRequest] = deque()
        self._ready: deque[PendingRequest] = deque()
        self._in_engine: dict[str, PendingRequest] = {}
        self._num_admitted = 0
        """Requests that are being prepared, ready, or in the engine."""
        self._lost: str | None = None
        self._num_done = 0
        self._progress = (0, 0)
        """Requests done, and tokens of those that are not: changes with every token."""
        self._watchdog_stop = threading.Event()
        self._request_ids = itertools.count()
        self._step_thread = threading.Thread(
            target=self._run, args=(threads,), name="engine-loop", daemon=True
        )
        self._other_threads = [
            threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)
        ]
        self._prepares_between_steps = not opened.processes()
        if not self._prepares_between_steps:
            self._other_threads.append(
                threading.Thread(target=self._run_prepare, name="engine-prompts", daemon=True)
            )
        for thread in (self._step_thread, *self._other_threads):
            thread.start()

    def submit(self, requests: Sequence[Request]) -> list[Future[Generation | GenerationFailure]]:
        """Add requests to the queue.

        Raises:
            EngineLostError: The engine is lost.
        """
        pending = [PendingRequest(request=request) for request in requests]
        with self._changed:
            if self._lost is not None:
                raise EngineLostError(self._lost)
            self._waiting += pending
            self._changed.notify_all()
        return [one.result for one in pending]

    def queue_load(self) -> QueueLoad:
        """Return how busy the engine is."""
        with self._changed:
            running = min(len(self._in_engine), self.max_running)
            total = self._num_admitted + len(self._waiting)
            return QueueLoad(running=running, waiting=total - running)

    def close(self) -> bool:
        """Stop; waiting callers get an `EngineLostError`.

        Returns:
            Whether no step is running, so that the engine can be shut down.
        """
        self._lose(CLOSED)
        if not self._step_thread.is_alive():
            return True
        # An engine in a process of its own may never give another output.
        self._step_thread.join(timeout=5)
        if self._step_thread.is_alive():
            self.opened.unblock()
            self._step_thread.join(timeout=5)
        for thread in self._other_threads:
            thread.join(timeout=5)
        return not self._step_thread.is_alive()

    def _run_prepare(self) -> None:
        """Prepare prompts until the engine is lost."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lost is not None or self._can_prepare())
                if self._lost is not None:
                    return
            self._prepare_next()

    def _can_prepare(self) -> bool:
        """Return whether a prompt waits and may be prepared now; `_changed` is held."""
        return bool(self._waiting) and self._num_admitted < self.max_running + PREFETCH

    def _prepare_next(self) -> bool:
        """Prepare one prompt; return False if there is none, or no room for it."""
        with self._changed:
            if not self._can_prepare():
                return False
            pending = self._waiting.popleft()
            self._num_admitted += 1
        try:
            prepared = self._prepare(pending.request)
        except Exception as error:  # noqa: BLE001 - our own bug; the caller's thread raises it
            self._resolve(pending, error)
            return True
        if isinstance(prepared, GenerationFailure):
            self._resolve(pending, prepared)
            return True
        pending.prepared = prepared
        with self._changed:
            self._ready.append(pending)
            if self._is_lost():
                self._fail_pending()
            self._changed.notify_all()
        return True

    def _is_lost(self) -> bool:
        return self._lost is not None

    def _run(self, threads: int) -> None:
        """Own the engine: add requests, step, and return results."""
        set_threads(threads)
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._lost is not None
                        or self._ready
                        or self._in_engine
                        or (self._prepares_between_steps and self._can_prepare())
                    )
                )
                if self._lost is not None:
                    return
            while self._prepares_between_steps and self._prepare_next():
                pass
            with self._changed:
                ready = {str(next(self._request_ids)): pending for pending in self._ready}
                self._ready.clear()
                self._in_engine |= ready
            try:
                with self.opened.using:
                    self._step(ready)
            except Exception as error:  # noqa: BLE001 - whatever it is, the engine is lost
                self._lose(f"vLLM's engine failed: {type(error).__name__}: {error}")
                return

    def _step(self, ready: Mapping[str, PendingRequest]) -> None:
        for request_id, pending in ready.items():
            assert pending.prepared is not None
            try:
                self.engine.add_request(
                    request_id,
                    pending.prepared.prompt,
                    pending.prepared.params,
                    lora_request=self.opened.adapter,
                )
            except self._request_errors as error:
                failure = GenerationFailure(reason="model_refused", detail=str(error))
                self._finish(request_id, failure)
            # The engine has it now; free the memory of the pixels here.
            pending.prepared = None
        if self._in_engine:
            for output in self.engine.step():
                if output.finished:
                    self._finish_output(output)
            states = self.engine.output_processor.request_states.values()
            num_tokens = sum(state.detokenizer.num_output_tokens() for state in states)
            self._progress = (self._num_done, num_tokens)
        self._abort_late_requests()

    def _finish_output(self, output: Any) -> None:
        """Return a finished output of the engine to its caller."""
        (first,) = output.outputs
        reason = first.finish_reason
        if reason not in ("stop", "length"):
            raise RuntimeError(f"a request ended with {reason!r}")
        self._finish(
            output.request_id,
            Generation(text=first.text, num_tokens=len(first.token_ids), finish_reason=reason),
        )

    def _abort_late_requests(self) -> None:
        """Start the clock of requests that the engine has room for; abort those past theirs."""
        now = time.monotonic()
        late = []
        for request_id, pending in itertools.islice(self._in_engine.items(), self.max_running):
            if pending.start is None:
                pending.start = now
            elif now - pending.start > self.deadline_s:
                late.append(request_id)
        if late:
            self.engine.abort_request(late)
        for request_id in late:
            detail = f"unfinished after {self.deadline_s:g} s"
            self._finish(request_id, GenerationFailure(reason="model_timeout", detail=detail))

    def _finish(self, request_id: str, result: Generation | GenerationFailure) -> None:
        with self._changed:
            pending = self._in_engine.pop(request_id, None)
            self._num_done += 1
        if pending is not None:
            self._resolve(pending, result)

    def _resolve(
        self, pending: PendingRequest, result: Generation | GenerationFailure | Exception
    ) -> None:
        with self._changed:
            self._num_admitted -= 1
            if not pending.result.done():
                if isinstance(result, Exception):
                    pending.result.set_exception(result)
                else:
                    pending.result.set_result(result)
            self._changed.notify_all()

    def _watch(self) -> None:
        """Check the engine a few times a second."""
        pause = min(0.25, self.stall_s / 4)
        progress = self._progress
        since = last_check = time.monotonic()
        while not self._watchdog_stop.wait(pause):
            now, previous_check = time.monotonic(), last_check
            last_check = now
            if self.opened.is_dead():
                self._lose("the process of vLLM's engine ended by itself")
                return
            # If this thread itself did not run for long, the machine was suspended.
            was_suspended = now - previous_check > self.stall_s / 2
            if not self._in_engine or self._progress != progress or was_suspended:
                progress, since = self._progress, now
            elif now - since > self.stall_s:
                self._lose(
                    f"vLLM's engine hangs: {len(self._in_engine)} requests, and no token in"
                    f" {self.stall_s:g} s"
                )
                return

    def _lose(self, reason: str) -> None:
        """Give the engine up, and fail all pending requests."""
        with self._changed:
            if self._lost is not None:
                return
            self._lost = reason
            self._fail_pending()
            self._changed.notify_all()
        self._watchdog_stop.set()
        if reason != CLOSED:
            self.opened.kill()

    def _fail_pending(self) -> None:
        """Set an `EngineLostError` on all pending requests; `_changed` is held."""
        for pending in (*self._waiting, *self._ready, *self._in_engine.values()):
            if not pending.result.done():
                # One error each: threads that raise the same one would share its traceback.
                pending.result.set_exception(EngineLostError(self._lost))
        self._waiting.clear()
        self._ready.clear()
        self._in_engine.clear()
