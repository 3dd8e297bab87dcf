"""Generate texts with a model of any family through transformers, in batches.

Requests of similar length, from all callers, are decoded together, padded on the left; a text does
not depend on the rest of its batch (see `decoding`). The engine has no thread of its own: the
caller that holds the lock serves batches for everybody until its own texts are done. An adapter is
merged into the weights, which costs nothing at decoding time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError, DataError, EngineLostError
from consomme.engines.contrast import DIFFERENT_TOKENS, Contrast, effective
from consomme.engines.generation.decoding import (
    GumbelLogitsProcessor,
    RegexCompiler,
    RegexLogitsProcessor,
    RowStoppingCriteria,
    cut_at_stop,
    generate,
    version,
)
from consomme.engines.generation.guided_decoding import GuidanceLogitsProcessor, generate_in_turns
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    QueueLoad,
    Request,
    Sampling,
    check_vision,
)
from consomme.engines.generation.writing_check import (
    SINGLE,
    check_writing,
    check_writing_about_several,
)
from consomme.engines.memory import halve_on_oom
from consomme.models.adapters import merge_adapter, open_adapter
from consomme.models.attention import max_positions
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import EncodedPrompt, ImageRefusedError, refusal_reason
from consomme.models.layout import is_simple
from consomme.models.selfcheck import SelfCheck
from consomme.models.weights import load_tensors, open_model

# Shapes: B rows, T token positions.

_LOG = logging.getLogger(__name__)

WINDOW = 4
"""Waiting requests, in batches, from which those of similar length are chosen."""


@dataclass(eq=False, kw_only=True)
class _QueuedRequest:
    """A request in the queue, and the future of its result."""

    request: Request
    sampling: Sampling
    prompt: EncodedPrompt | None = None
    contrast: Contrast | None = None
    masked: EncodedPrompt | None = None
    """The prompt with masked images, if there is a contrast."""

    grammar: Any = None
    has_several: bool = False
    """Whether it has several images, or one that is not at the beginning."""

    result: Future[Generation | GenerationFailure] = field(default_factory=Future)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Requests with equal keys may share a batch."""
        alpha = self.contrast and self.contrast.alpha
        return (self.sampling, not self.request.images, self.has_several, alpha)


class TransformersEngine:
    """Holds one model and generates texts."""

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
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            sampling: How tokens are chosen.
            batch_size: Requests decoded together.
            deadline_s: Time limit of one batch.
            adapter: Folder of a LoRA in PEFT's format, merged into the weights.
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU and float32 on a CPU.
            threads: torch threads of this process.
            model_hash: Of the content of the folder and the adapter; the result of the self-check
                is cached under it. None checks every time.
            template: Options of the chat template.

        Raises:
            CheckpointError: The model or the adapter cannot be loaded, the model takes no
                conversation, or no way of running it equals its plain `generate`.
        """
        torch.set_num_threads(threads)
        self.sampling = sampling or Sampling()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.model, processor = open_model(model_path, getattr(torch, dtype))
        if adapter is not None:
            merge_adapter(self.model, open_adapter(adapter))
        self.model.to(self.device)
        self.chat = chat_encoder_for(self.model.config, processor, template, has_answers=False)
        self.batch_size, self.deadline_s = batch_size, deadline_s
        self.version = version()
        text = self.model.config.get_text_config()
        self.max_positions: int = max_positions(self.model.config)
        stop_ids = self.model.generation_config.eos_token_id
        if stop_ids is None:
            stop_ids = self.chat.tokenizer.eos_token_id
        self._stop_ids: list[int] = stop_ids if isinstance(stop_ids, list) else [stop_ids]
        self._batcher = Batcher(self.model, self.chat.tokenizer)
        head = self.model.get_output_embeddings()
        vocab_size = text.vocab_size if head is None else head.weight.shape[0]
        self._regexes = RegexCompiler(self.chat.tokenizer, vocab_size, self._stop_ids)
        self._model_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._waiting: list[_QueuedRequest] = []
        self._num_running = 0
        self._is_closed = False
        self.check = check_writing(
            self.model, self.chat, self._inputs, self._batcher.pad_id, model_hash
        )
        if self.check.way == SINGLE:
            self.batch_size = 1
        _LOG.info("%s", self.check.line())
        self._model_hash = model_hash
        self._several: SelfCheck | str | None = None
        """Of requests with several images: not checked yet, or why they are refused."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the model's weights by others of the same architecture, in place.

        Args:
            weights: By the names of a checkpoint folder's tensors.
        """
        with self._model_lock:
            load_tensors(self.model, weights)

    def queue_load(self) -> QueueLoad:
        """Return how busy the engine is."""
        with self._queue_lock:
            return QueueLoad(running=self._num_running, waiting=len(self._waiting))

    def close(self) -> None:
        """Drop the model; waiting callers get an `EngineLostError`."""
        self._is_closed = True
        with self._model_lock:
            self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generate(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Generate texts; see `GenerationEngine.generate`."""
        check_vision(self.chat.has_vision, requests)
        queued = [
            _QueuedRequest(
                request=one,
                sampling=replace(
                    self.sampling, max_tokens=one.max_tokens or self.sampling.max_tokens
                ),
                has_several=not is_simple(one.placed_turns),
                contrast=effective(one.contrast, one.images),
            )
            for one in requests
        ]
        for one in queued:
            if one.request.pattern is not None:
                with self._model_lock:
                    one.grammar = self._regexes.compile(one.request.pattern)
        if any(one.has_several for one in queued):
            self._check_several()
        with self._queue_lock:
            self._waiting += queued
        while not all(one.result.done() for one in queued):
            with self._model_lock:
                if self._is_closed:
                    raise EngineLostError("the engine was closed")
                batch = self._next_batch()
                try:
                    self._serve(batch)
                # Callers in other threads wait for texts of this batch too.
                except BaseException as error:
                    for one in batch:
                        if not one.result.done():
                            one.result.set_exception(error)
                    raise
                finally:
                    with self._queue_lock:
                        self._num_running = 0
        return [one.result.result() for one in queued]

    def _check_several(self) -> None:
        """Check requests with several images, once; their way may be a slower one."""
        with self._model_lock:
            if self._is_closed or self._several is not None:
                return
            try:
                self._several = check_writing_about_several(
                    self.model,
                    self.chat,
                    self._inputs,
                    self._batcher.pad_id,
                    self.check.way,
                    self._model_hash,
                )
            except CheckpointError as error:
                self._several = str(error)
                _LOG.warning("%s", error)
            else:
                _LOG.info("%s", self._several.line())

    def _next_batch(self) -> list[_QueuedRequest]:
        """Take the oldest request from the queue, and those of the most similar length."""
        with self._queue_lock:
            window = self._waiting[: WINDOW * self.batch_size]
        for one in window:
            if one.prompt is None:
                self._encode(one)
        with self._queue_lock:
            self._waiting = [one for one in self._waiting if not one.result.done()]
            window = [one for one in window if not one.result.done()]
            if not window:
                return []
            similar = [one for one in window if one.batch_key == window[0].batch_key]
            if self._is_alone(window[0]):
                similar = window[:1]
            else:
                similar = [one for one in similar if not self._is_alone(one)]
            similar.sort(key=_prompt_length)
            # One of these contains the oldest request.
            batches = [
                similar[k : k + self.batch_size] for k in range(0, len(similar), self.batch_size)
            ]
            batch = next((one for one in batches if window[0] in one), [])
            chosen = {id(one) for one in batch}
            self._waiting = [one for one in self._waiting if id(one) not in chosen]
            self._num_running = len(batch)
        return batch

    def _is_alone(self, queued: _QueuedRequest) -> bool:
        """Return whether a text may differ in a batch, or become longer than what was checked."""
        if queued.has_several and isinstance(self._several, SelfCheck):
            if self._several.way == SINGLE:
                return True
        limit = self.check.alone_beyond
        return limit is not None and _prompt_length(queued) + queued.sampling.max_tokens > limit

    def _encode(self, queued: _QueuedRequest) -> None:
        """Encode a request, or set a `GenerationFailure` as its result."""
        if queued.has_several and isinstance(self._several, str):
            queued.result.set_result(
                GenerationFailure(reason="conversation_unsupported", detail=self._several)
            )
            return
        images = [image.convert("RGB") for image in queued.request.images]
        try:
            prompt = self.chat.encode_prompt(queued.request.turns, images)
            if queued.contrast is not None:
                queued.masked = self._encode_masked(queued, prompt)
        except DataError as error:
            queued.result.set_result(
                GenerationFailure(reason=refusal_reason(error), detail=str(error))
            )
            return
        length = len(prompt.input_ids)
        if length >= self.max_positions:
            detail = f"{length} tokens, the model has {self.max_positions} positions"
            queued.result.set_result(GenerationFailure(reason="sequence_too_long", detail=detail))
        queued.prompt = prompt

    def _encode_masked(self, queued: _QueuedRequest, plain: EncodedPrompt) -> EncodedPrompt:
        assert queued.contrast is not None
        images = [image.convert("RGB") for image in queued.contrast.images]
        masked = self.chat.encode_prompt(queued.request.turns, images)
        if masked.input_ids != plain.input_ids:
            sizes = {"masked": len(masked.input_ids), "plain": len(plain.input_ids)}
            raise ImageRefusedError(DIFFERENT_TOKENS.format(**sizes))
        return masked

    def _serve(self, batch: Sequence[_QueuedRequest]) -> None:
        if batch:
            results = halve_on_oom(self._decode_batch, batch)
            for one, result in zip(batch, results, strict=True):
                one.result.set_result(result)

    @torch.inference_mode()
    def _decode_batch(
        self, batch: Sequence[_QueuedRequest]
    ) -> list[Generation | GenerationFailure]:
        prompts = [one.prompt for one in batch if one.prompt is not None]
        masked = [one.masked for one in batch if one.masked is not None]
        sampling = batch[0].sampling
        width = max(len(one.input_ids) for one in prompts)
        limits = [
            min(sampling.max_tokens, self.max_positions - len(one.input_ids)) for one in prompts
        ]
        criteria = RowStoppingCriteria(
            width, limits, sampling.stop, self._decode_ids, self.deadline_s
        )
        contrast = batch[0].contrast
        if contrast is None:
            output_BT = self._run(prompts, self._processors(batch), max(limits), criteria)
        elif self.check.way == SINGLE or self._is_alone(batch[0]):
            output_BT = generate_in_turns(
                lambda first, end: self._run(
                    prompts, self._processors(batch, first), max(limits), end
                ),
                lambda first, end: self._run(
                    masked, self._processors(batch, first), max(limits), end
                ),
                contrast.alpha,
                criteria,
            )
        else:
            criteria.limits *= 2
            guide = GuidanceLogitsProcessor(contrast.alpha)
            processors = self._processors([*batch, *batch], [guide])
            output_BT = self._run([*prompts, *masked], processors, max(limits), criteria)
        rows = output_BT[: len(batch), width:].tolist()
        return [self._result(row, ids, sampling.stop, criteria) for row, ids in enumerate(rows)]

    def _processors(self, rows: Sequence[_QueuedRequest], guides: Sequence[Any] = ()) -> list[Any]:
        """Return what changes the logits of a batch; what guides stands before the sampling."""
        sampling = rows[0].sampling
        processors: list[Any] = []
        if any(one.grammar is not None for one in rows):
            processors.append(RegexLogitsProcessor([one.grammar for one in rows]))
        processors += guides
        if sampling.temperature > 0:
            seeds = [one.request.seed for one in rows]
            processors.append(GumbelLogitsProcessor(seeds, sampling.temperature, sampling.top_p))
        return processors

    def _run(
        self,
        prompts: Sequence[EncodedPrompt],
        processors: Sequence[Any],
        max_new_tokens: int,
        criteria: Any,
    ) -> Tensor:
        """Run one batch; returns its rows (B, T)."""
        return generate(
            self.model,
            self._inputs(prompts),
            max_new_tokens=max_new_tokens,
            stop_ids=self._stop_ids,
            pad_id=self._batcher.pad_id,
            processors=processors,
            criteria=criteria,
        )

    def _inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """Collate prompts, padded on the left, on the model's device."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else None)
            for name, value in self._batcher.collate(prompts, padding_side="left").items()
        }

    def _result(
        self, row: int, ids: list[int], stop: Sequence[str], criteria: RowStoppingCriteria
    ) -> Generation | GenerationFailure:
        """Convert one row of new tokens to a result."""
        if row in criteria.stopped_at:
            ids = ids[: criteria.stopped_at[row]]
            text = cut_at_stop(self._decode_ids(ids), stop) or ""
            return Generation(text=text, num_tokens=len(ids), finish_reason="stop")
        ids = ids[: criteria.limits[row]]
        end = next((k for k, token in enumerate(ids) if token in self._stop_ids), None)
        if end is not None:
            ids = ids[: end + 1]
            text = self._decode_ids(ids)
            return Generation(text=text, num_tokens=len(ids), finish_reason="stop")
        if len(ids) < criteria.limits[row]:
            detail = f"unfinished after {self.deadline_s:g} s, at token {len(ids)}"
            return GenerationFailure(reason="model_timeout", detail=detail)
        return Generation(text=self._decode_ids(ids), num_tokens=len(ids), finish_reason="length")

    def _decode_ids(self, ids: Sequence[int]) -> str:
        text: str = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _prompt_length(queued: _QueuedRequest) -> int:
    assert queued.prompt is not None
    return len(queued.prompt.input_ids)
