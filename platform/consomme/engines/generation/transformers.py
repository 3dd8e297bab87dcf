"""Write texts with a model of any family through transformers, in batches.

Decisions made here. Requests of alike length, of whoever asks at the time, are decoded together,
padded on the left; a text does not depend on its neighbours (see `decoding`). There is no thread of
the engine's own: whoever asks first works for everybody until its own texts are there. An adapter
is merged into the weights, which costs nothing later.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consomme.base.errors import DataError, EngineLostError
from consomme.engines.generation.decoding import (
    Endings,
    Nucleus,
    PatternCompiler,
    Patterns,
    cut,
    generate,
    version,
)
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    Load,
    Request,
    Sampling,
    check_vision,
)
from consomme.engines.memory import halving
from consomme.models.adapters import merge_adapter, open_adapter
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import EncodedPrompt, PictureRefusedError
from consomme.models.weights import load_tensors, open_scorer

# Shapes: B rows, T token positions.

WINDOW = 4
"""Batches' worth of waiting requests that are looked at for ones of alike length."""


@dataclass(eq=False, kw_only=True)
class _Ticket:
    """A request on its way."""

    request: Request
    sampling: Sampling
    asked: EncodedPrompt | None = None
    pattern: Any = None
    written: Future[Generation | GenerationFailure] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Tickets of one kind go into one batch."""
        return (self.sampling, self.request.image is None)


class TransformersEngine:
    """Holds one model and writes."""

    def __init__(
        self,
        model_path: str | Path,
        sampling: Sampling | None = None,
        *,
        batch_size: int = 64,
        deadline_s: float = 600.0,
        adapter: str | None = None,
        dtype: str = "auto",
        threads: int = 1,
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            sampling: How tokens are chosen.
            batch_size: Requests decoded together.
            deadline_s: How long one batch may take.
            adapter: Folder of a LoRA in PEFT's format, merged into the weights.
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU and float32 on a CPU.
            threads: torch threads of this process.

        Raises:
            CheckpointError: The model or the adapter cannot be loaded.
        """
        torch.set_num_threads(threads)
        self.sampling = sampling or Sampling()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.model, processor = open_scorer(model_path, getattr(torch, dtype))
        if adapter is not None:
            merge_adapter(self.model, open_adapter(adapter))
        self.model.to(self.device)
        self.chat = chat_encoder_for(self.model.config, processor)
        self.batch_size, self.deadline_s = batch_size, deadline_s
        self.version = version()
        text = self.model.config.get_text_config()
        self.max_positions: int = text.max_position_embeddings
        stop_ids = self.model.generation_config.eos_token_id
        if stop_ids is None:
            stop_ids = self.chat.tokenizer.eos_token_id
        self._stop_ids: list[int] = stop_ids if isinstance(stop_ids, list) else [stop_ids]
        self._batcher = Batcher(self.model, self.chat.tokenizer)
        head = self.model.get_output_embeddings()
        self._patterns = PatternCompiler(self.chat.tokenizer, head.weight.shape[0], self._stop_ids)
        self._model = threading.Lock()
        self._queue = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._running = 0
        self._is_closed = False

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put other weights of the same architecture into the model, in place.

        Args:
            weights: By the names of a checkpoint folder's tensors.
        """
        with self._model:
            load_tensors(self.model, weights)

    def write(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Answer requests; see `GenerationEngine.write`."""
        return self._write(requests, self.sampling)

    def answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], max_tokens: int
    ) -> list[str]:
        """Answer one question about each picture, greedily.

        Args:
            images: Decoded pictures.
            questions: One per picture.
            max_tokens: Longest answer.

        Returns:
            The answers without white space around them.

        Raises:
            DataError: A question or a picture cannot be put to this model.
        """
        requests = [
            Request.about(question, image)
            for image, question in zip(images, questions, strict=True)
        ]
        answers = []
        for number, one in enumerate(self._write(requests, Sampling(max_tokens=max_tokens))):
            if isinstance(one, GenerationFailure):
                raise DataError(
                    f"question {number}, {questions[number][:80]!r}, cannot be put to this model:"
                    f" {one.reason}: {one.detail}"
                )
            answers.append(one.text.strip())
        return answers

    def load(self) -> Load:
        """Tell how busy the engine is."""
        with self._queue:
            return Load(running=self._running, waiting=len(self._waiting))

    def close(self) -> None:
        """Drop the model; whoever waits gets an `EngineLostError`."""
        self._is_closed = True
        with self._model:
            self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> list[Generation | GenerationFailure]:
        check_vision(self.chat.has_vision, requests)
        tickets = [_Ticket(request=request, sampling=sampling) for request in requests]
        for ticket in tickets:
            if ticket.request.pattern is not None:
                with self._model:
                    ticket.pattern = self._patterns.compile(ticket.request.pattern)
        with self._queue:
            self._waiting += tickets
        while not all(ticket.written.done() for ticket in tickets):
            with self._model:
                if self._is_closed:
                    raise EngineLostError("the engine was closed")
                batch = self._take()
                try:
                    self._serve(batch)
                # Whatever it was, others wait for texts of this batch too; it is raised again.
                except BaseException as error:
                    for ticket in batch:
                        if not ticket.written.done():
                            ticket.written.set_exception(error)
                    raise
                finally:
                    with self._queue:
                        self._running = 0
        return [ticket.written.result() for ticket in tickets]

    def _take(self) -> list[_Ticket]:
        """Choose what goes into the next batch: the oldest request, and those most like it."""
        with self._queue:
            window = self._waiting[: WINDOW * self.batch_size]
        for ticket in window:
            if ticket.asked is None:
                self._ask(ticket)
        with self._queue:
            self._waiting = [ticket for ticket in self._waiting if not ticket.written.done()]
            window = [ticket for ticket in window if not ticket.written.done()]
            if not window:
                return []
            alike = [ticket for ticket in window if ticket.kind == window[0].kind]
            alike.sort(key=_length)
            # Sorted by length and cut; the oldest is in one of the pieces.
            pieces = [alike[k : k + self.batch_size] for k in range(0, len(alike), self.batch_size)]
            batch = next((piece for piece in pieces if window[0] in piece), [])
            chosen = {id(ticket) for ticket in batch}
            self._waiting = [ticket for ticket in self._waiting if id(ticket) not in chosen]
            self._running = len(batch)
        return batch

    def _ask(self, ticket: _Ticket) -> None:
        """Put a request into tokens, or say why it cannot be."""
        image = ticket.request.image
        try:
            asked = self.chat.ask(ticket.request.turns, image and image.convert("RGB"))
        except PictureRefusedError as error:
            ticket.written.set_result(
                GenerationFailure(reason="image_not_encodable", detail=str(error))
            )
            return
        except DataError as error:
            ticket.written.set_result(
                GenerationFailure(reason="text_not_encodable", detail=str(error))
            )
            return
        if len(asked.input_ids) >= self.max_positions:
            detail = f"{len(asked.input_ids)} tokens, the model has {self.max_positions} positions"
            ticket.written.set_result(GenerationFailure(reason="sequence_too_long", detail=detail))
        ticket.asked = asked

    def _serve(self, batch: Sequence[_Ticket]) -> None:
        if batch:
            found = halving(self._generate, batch)
            for ticket, written in zip(batch, found, strict=True):
                ticket.written.set_result(written)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[_Ticket]) -> list[Generation | GenerationFailure]:
        asked = [ticket.asked for ticket in batch if ticket.asked is not None]
        inputs = self._inputs(asked)
        sampling = batch[0].sampling
        width = inputs["input_ids"].shape[1]
        limits = [
            min(sampling.max_tokens, self.max_positions - len(one.input_ids)) for one in asked
        ]
        endings = Endings(width, limits, sampling.stop, self._decode, self.deadline_s)
        processors: list[Any] = []
        if any(ticket.pattern is not None for ticket in batch):
            processors.append(Patterns([ticket.pattern for ticket in batch]))
        if sampling.temperature > 0:
            seeds = [ticket.request.seed for ticket in batch]
            processors.append(Nucleus(seeds, sampling.temperature, sampling.top_p))
        output_BT = generate(
            self.model,
            inputs,
            max_new_tokens=max(limits),
            stop_ids=self._stop_ids,
            pad_id=self._batcher.pad_id,
            processors=processors,
            endings=endings,
        )
        rows = output_BT[:, width:].tolist()
        return [self._written(row, ids, sampling.stop, endings) for row, ids in enumerate(rows)]

    def _inputs(self, asked: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """Put conversations side by side, padded on the left."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else None)
            for name, value in self._batcher.join(asked, pad="left").items()
        }

    def _written(
        self, row: int, ids: list[int], stop: Sequence[str], endings: Endings
    ) -> Generation | GenerationFailure:
        """Take one row of new tokens for what it is."""
        if row in endings.ended:
            ids = ids[: endings.ended[row]]
            text = cut(self._decode(ids), stop) or ""
            return Generation(text=text, num_tokens=len(ids), finish_reason="stop")
        ids = ids[: endings.limits[row]]
        end = next((k for k, token in enumerate(ids) if token in self._stop_ids), None)
        if end is not None:
            ids = ids[: end + 1]
            return Generation(text=self._decode(ids), num_tokens=len(ids), finish_reason="stop")
        if len(ids) < endings.limits[row]:
            detail = f"still writing after {self.deadline_s:g} s, at token {len(ids)}"
            return GenerationFailure(reason="model_timeout", detail=detail)
        return Generation(text=self._decode(ids), num_tokens=len(ids), finish_reason="length")

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _length(ticket: _Ticket) -> int:
    assert ticket.asked is not None
    return len(ticket.asked.input_ids)
