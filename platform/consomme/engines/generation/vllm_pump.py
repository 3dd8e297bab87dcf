"""Keep vLLM's engine busy with requests of many threads, and notice when it dies or hangs.

Decisions made here. One thread owns the engine, and steps it as long as there is work. Prompts are
prepared ahead, just enough of them that the engine never runs dry: by a thread of their own while
an engine in another process computes, but between the steps of an engine in this process, since two
threads that both run Python only take the interpreter's lock from each other. Another thread
watches. It looks at two things: whether the engine's process lives, and whether tokens come. Where
they do not, it kills the process and frees everybody who waits, which the thread that is stuck in
the engine cannot do.
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
from consomme.engines.generation.requests import Generation, GenerationFailure, Load, Request
from consomme.engines.vllm_engine import Opened, set_threads

CLOSED = "the engine was closed"

AHEAD = 8
"""Prompts that are ready beyond those that the engine has room for."""


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A request as the engine wants it."""

    prompt: Any
    """What vLLM's renderer made: tokens, and the pixels of a picture."""

    params: Any
    """`SamplingParams`."""


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A request on its way, and where its answer will be."""

    request: Request
    written: Future[Generation | GenerationFailure] = field(default_factory=Future)
    prepared: PreparedRequest | None = None
    began: float | None = None
    """When the engine took it up."""


class Pump:
    """Moves requests through one engine."""

    def __init__(
        self,
        opened: Opened,
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
            prepare: Makes a request ready for it; called by one thread only.
            max_running: Requests that the engine works on at once.
            deadline_s: How long it may work on one of them.
            stall_s: After how long without a token it hangs.
            threads: OpenMP's, for the thread that steps the engine.
        """
        from vllm.exceptions import VLLMClientError

        self.opened, self.engine = opened, opened.llm.llm_engine
        self.deadline_s, self.stall_s, self.max_running = deadline_s, stall_s, max_running
        self._prepare, self._refusals = prepare, (ValueError, VLLMClientError)
        self._changed = threading.Condition()
        # All of these are only touched while `_changed` is held.
        self._waiting: deque[Ticket] = deque()
        self._ready: deque[Ticket] = deque()
        self._inside: dict[str, Ticket] = {}
        self._num_held = 0
        """Requests that are being prepared, ready, or inside."""
        self._lost: str | None = None
        self._num_done = 0
        self._beat = (0, 0)
        """Requests done, and tokens of those that are not: changes with every token."""
        self._watch_ends = threading.Event()
        self._names = itertools.count()
        self._pump = threading.Thread(
            target=self._run, args=(threads,), name="engine-pump", daemon=True
        )
        self._helpers = [threading.Thread(target=self._watch, name="engine-watch", daemon=True)]
        self._prepares_between_steps = not opened.processes()
        if not self._prepares_between_steps:
            self._helpers.append(
                threading.Thread(target=self._make_ready, name="engine-prompts", daemon=True)
            )
        for thread in (self._pump, *self._helpers):
            thread.start()

    def submit(self, requests: Sequence[Request]) -> list[Future[Generation | GenerationFailure]]:
        """Put requests in line.

        Raises:
            EngineLostError: The engine is gone.
        """
        tickets = [Ticket(request=request) for request in requests]
        with self._changed:
            if self._lost is not None:
                raise EngineLostError(self._lost)
            self._waiting += tickets
            self._changed.notify_all()
        return [ticket.written for ticket in tickets]

    def load(self) -> Load:
        """Tell how busy the engine is."""
        with self._changed:
            running = min(len(self._inside), self.max_running)
            total = self._num_held + len(self._waiting)
            return Load(running=running, waiting=total - running)

    def close(self) -> bool:
        """Stop; whoever waits gets an `EngineLostError`.

        Returns:
            Whether the engine stands still, so that it can be shut down.
        """
        self._lose(CLOSED)
        if not self._pump.is_alive():
            return True
        # In a process of its own the engine may have nothing more to tell.
        self._pump.join(timeout=5)
        if self._pump.is_alive():
            self.opened.free()
            self._pump.join(timeout=5)
        for thread in self._helpers:
            thread.join(timeout=5)
        return not self._pump.is_alive()

    def _make_ready(self) -> None:
        """Prepare prompts until the engine is lost."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lost is not None or self._has_room())
                if self._lost is not None:
                    return
            self._make_next_ready()

    def _has_room(self) -> bool:
        """Whether a prompt waits and may be prepared now; `_changed` is held."""
        return bool(self._waiting) and self._num_held < self.max_running + AHEAD

    def _make_next_ready(self) -> bool:
        """Prepare one prompt; False if there is none, or no room for it."""
        with self._changed:
            if not self._has_room():
                return False
            ticket = self._waiting.popleft()
            self._num_held += 1
        try:
            prepared = self._prepare(ticket.request)
        except Exception as error:  # noqa: BLE001 - our own bug; the caller's thread raises it
            self._settle(ticket, error)
            return True
        if isinstance(prepared, GenerationFailure):
            self._settle(ticket, prepared)
            return True
        ticket.prepared = prepared
        with self._changed:
            self._ready.append(ticket)
            if self._is_lost():
                self._fail()
            self._changed.notify_all()
        return True

    def _is_lost(self) -> bool:
        return self._lost is not None

    def _run(self, threads: int) -> None:
        """Own the engine: let requests in, step, hand out what is done."""
        set_threads(threads)
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._lost is not None
                        or self._ready
                        or self._inside
                        or (self._prepares_between_steps and self._has_room())
                    )
                )
                if self._lost is not None:
                    return
            while self._prepares_between_steps and self._make_next_ready():
                pass
            with self._changed:
                ready = {str(next(self._names)): ticket for ticket in self._ready}
                self._ready.clear()
                self._inside |= ready
            try:
                self._step(ready)
            except Exception as error:  # noqa: BLE001 - whatever it is, the engine is gone
                self._lose(f"vLLM's engine failed: {type(error).__name__}: {error}")
                return

    def _step(self, ready: Mapping[str, Ticket]) -> None:
        for name, ticket in ready.items():
            assert ticket.prepared is not None
            try:
                self.engine.add_request(
                    name,
                    ticket.prepared.prompt,
                    ticket.prepared.params,
                    lora_request=self.opened.adapter,
                )
            except self._refusals as error:
                self._leave(name, GenerationFailure(reason="model_refused", detail=str(error)))
            # The engine has it now; the pixels would only take up memory here.
            ticket.prepared = None
        if self._inside:
            for output in self.engine.step():
                if output.finished:
                    self._finish(output)
            states = self.engine.output_processor.request_states.values()
            tokens = sum(state.detokenizer.num_output_tokens() for state in states)
            self._beat = (self._num_done, tokens)
        self._end_late_ones()

    def _finish(self, output: Any) -> None:
        """Hand out one text."""
        (first,) = output.outputs
        reason = first.finish_reason
        if reason not in ("stop", "length"):
            raise RuntimeError(f"a request ended with {reason!r}")
        self._leave(
            output.request_id,
            Generation(text=first.text, num_tokens=len(first.token_ids), finish_reason=reason),
        )

    def _end_late_ones(self) -> None:
        """Start the clocks of requests that the engine has room for now; end those that ran out."""
        now = time.monotonic()
        late = []
        for name, ticket in itertools.islice(self._inside.items(), self.max_running):
            if ticket.began is None:
                ticket.began = now
            elif now - ticket.began > self.deadline_s:
                late.append(name)
        if late:
            self.engine.abort_request(late)
        for name in late:
            detail = f"still writing after {self.deadline_s:g} s"
            self._leave(name, GenerationFailure(reason="model_timeout", detail=detail))

    def _leave(self, name: str, result: Generation | GenerationFailure) -> None:
        with self._changed:
            ticket = self._inside.pop(name, None)
            self._num_done += 1
        if ticket is not None:
            self._settle(ticket, result)

    def _settle(self, ticket: Ticket, result: Generation | GenerationFailure | Exception) -> None:
        with self._changed:
            self._num_held -= 1
            if not ticket.written.done():
                if isinstance(result, Exception):
                    ticket.written.set_exception(result)
                else:
                    ticket.written.set_result(result)
            self._changed.notify_all()

    def _watch(self) -> None:
        """Look after the engine a few times a second."""
        pause = min(0.25, self.stall_s / 4)
        beat = self._beat
        since = seen = time.monotonic()
        while not self._watch_ends.wait(pause):
            now, before = time.monotonic(), seen
            seen = now
            if self.opened.is_dead():
                self._lose("the process of vLLM's engine ended by itself")
                return
            # Where this thread itself did not run for long, the machine stood still.
            if not self._inside or self._beat != beat or now - before > self.stall_s / 2:
                beat, since = self._beat, now
            elif now - since > self.stall_s:
                self._lose(
                    f"vLLM's engine hangs: {len(self._inside)} requests, and no token in"
                    f" {self.stall_s:g} s"
                )
                return

    def _lose(self, why: str) -> None:
        """Give the engine up, and free everybody who waits."""
        with self._changed:
            if self._lost is not None:
                return
            self._lost = why
            self._fail()
            self._changed.notify_all()
        self._watch_ends.set()
        if why != CLOSED:
            self.opened.kill()

    def _fail(self) -> None:
        """Tell everybody who waits that there will be no answer; `_changed` is held."""
        for ticket in (*self._waiting, *self._ready, *self._inside.values()):
            if not ticket.written.done():
                # One each: threads that raise the same error would write into one traceback.
                ticket.written.set_exception(EngineLostError(self._lost))
        self._waiting.clear()
        self._ready.clear()
        self._inside.clear()
