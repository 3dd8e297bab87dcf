"""Generate texts with vLLM inside an actor, for many units at once.

Prompts are given to vLLM as tokens from our own `ChatEncoder`, so every engine gives a family the
same prompt, and scoring uses the same. `vllm_loop` steps the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    QueueLoad,
    Request,
    Sampling,
    check_unguided,
    check_vision,
)
from consomme.engines.generation.vllm_loop import EngineLoop, PreparedRequest
from consomme.engines.generation.writing_check import requests_about_several
from consomme.engines.vllm_engine import EngineOptions, OpenedEngine, close_engine, open_engine
from consomme.models.chat import ChatEncoder
from consomme.models.chat_check import PROBE_SIZES
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import refusal_reason
from consomme.models.layout import is_simple
from consomme.models.weights import open_processor

if TYPE_CHECKING:
    from torch import Tensor

_QUESTION = "describe the image."


class VLLMEngine:
    """Holds one vLLM engine and generates texts.

    Greedy decoding in float32 on a CPU gives the same tokens as transformers. Sampling is
    repeatable for a given seed on the same build and device.
    """

    def __init__(
        self,
        model_path: str,
        sampling: Sampling | None = None,
        options: EngineOptions | None = None,
        *,
        deadline_s: float = 600.0,
        stall_s: float = 300.0,
        threads: int = 1,
        template: Mapping[str, Any] | None = None,
        opened: OpenedEngine | None = None,
    ) -> None:
        """Start the engine.

        Args:
            model_path: Hugging Face folder on local disk.
            sampling: How tokens are chosen.
            options: How the engine runs.
            deadline_s: Time limit of one text.
            stall_s: An engine that emits no token for this long counts as hung.
            threads: Of the engine, CPU only.
            template: Options of the chat template.
            opened: The engine of this folder, if another object has opened it; who did closes it.

        Raises:
            CheckpointError: vLLM cannot load the folder, or its family's prompts have bidirectional
                attention.
        """
        self.sampling, options = sampling or Sampling(), options or EngineOptions()
        self._owns = opened is None
        self.opened = opened or open_engine(str(model_path), options, threads=threads)
        self.version = self.opened.version
        try:
            self.chat = _chat_encoder(model_path, template)
        except CheckpointError:
            self._close_own()
            raise
        llm = self.opened.llm
        self._renderer, self._config = llm.llm_engine.renderer, llm.llm_engine.model_config
        self._verified_patterns: set[str] = set()
        self._several_refused = ""
        """Why requests with several images are refused, if they are."""
        try:
            self._check_images()
            self._several_refused = self._check_several()
        except CheckpointError:
            self._close_own()
            raise
        self._loop = EngineLoop(
            self.opened,
            self._prepare,
            max_running=options.max_num_seqs,
            deadline_s=deadline_s,
            stall_s=stall_s,
            threads=threads,
        )

    def generate(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Generate texts; see `GenerationEngine.generate`."""
        check_unguided(requests, "vLLM")
        check_vision(self.chat.has_vision, requests)
        for pattern in {one.pattern for one in requests} - self._verified_patterns:
            if pattern is not None:
                self._verify(pattern)
        return [result.result() for result in self._loop.submit(requests)]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the model's weights by others of the same architecture, in place.

        No request may be running.

        Args:
            weights: By the names of a checkpoint folder's tensors.

        Raises:
            CheckpointError: vLLM does not take all of them.
        """
        self.opened.load_weights(weights)

    def queue_load(self) -> QueueLoad:
        """Return how busy the engine is."""
        return self._loop.queue_load()

    def close(self) -> None:
        """Shut its own engine down and free its memory; waiting callers get an error."""
        # An engine that hangs in our own process cannot be shut down.
        if self._loop.close():
            self._close_own()

    def _close_own(self) -> None:
        if self._owns:
            close_engine(self.opened.llm)

    def _check_images(self) -> None:
        """Refuse a family whose images vLLM cannot prepare: every request would fail."""
        if not self.chat.has_vision:
            return
        found: Any = None
        for size in PROBE_SIZES:
            try:
                image = Image.new("RGB", size, "gray")
                found = self._prepare(Request.of_prompt(_QUESTION, [image]))
            # vLLM's code of a family may raise anything.
            except Exception as error:  # noqa: BLE001
                found = error
            else:
                if isinstance(found, PreparedRequest) or found.reason == "sequence_too_long":
                    return
        reason = found.detail if isinstance(found, GenerationFailure) else repr(found)
        raise CheckpointError(
            f"vLLM does not take a question about an image for {self._config.model}: {reason}; use"
            " {name: transformers}"
        )

    def _check_several(self) -> str:
        """Return why requests with several images are refused; empty if they are not.

        vLLM has its own code to prepare the images of a family, which must make the same tokens of
        several images as the family's own processor.
        """
        if not self.chat.has_vision:
            return ""
        if self.opened.max_images < 2:
            return f"vLLM takes at most {self.opened.max_images} image of this family"
        for name, request in requests_about_several().items():
            try:
                expected = self.chat.encode_prompt(request.turns, request.images).input_ids
            except DataError:
                # Requests of this shape are refused one by one.
                continue
            found = self._prepare(request)
            if isinstance(found, GenerationFailure):
                if found.reason == "sequence_too_long":
                    continue
                return f"vLLM does not take the probe {name!r}: {found.detail}"
            if list(found.prompt["prompt_token_ids"]) != expected:
                return (
                    f"vLLM makes {len(found.prompt['prompt_token_ids'])} tokens of the probe"
                    f" {name!r}, and the family's own processor {len(expected)} others; generate"
                    " with {name: transformers}"
                )
        return ""

    def _prepare(self, request: Request) -> PreparedRequest | GenerationFailure:
        """Convert a request to tokens and pixels."""
        from vllm.exceptions import VLLMClientError
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        if self._several_refused and not is_simple(request.placed_turns):
            return GenerationFailure(
                reason="conversation_unsupported", detail=self._several_refused
            )
        limit: int = self._config.max_model_len
        images = request.shown_images
        try:
            ids = self.chat.unexpanded_prompt_ids(request.placed_turns)
        except DataError as error:
            return GenerationFailure(reason=refusal_reason(error), detail=str(error))
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if len(ids) >= limit:
            return _too_long(len(ids), limit)
        if not images:
            (rendered,) = self._renderer.render_cmpl([parse_model_prompt(self._config, prompt)])
        else:
            try:
                prompt["multi_modal_data"] = {"image": images[0] if len(images) == 1 else images}
                (rendered,) = self._renderer.render_cmpl([parse_model_prompt(self._config, prompt)])
            except (ValueError, ZeroDivisionError, VLLMClientError) as error:
                sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
                what = "an image" if len(images) == 1 else f"{len(images)} images"
                detail = f"the model's processor does not take {what} of {sizes}: {error}"
                return GenerationFailure(reason="image_not_encodable", detail=detail)
        num_tokens = len(rendered["prompt_token_ids"])
        if num_tokens >= limit:
            return _too_long(num_tokens, limit)
        params = self._params(request.seed, request.pattern, request.max_tokens)
        return PreparedRequest(prompt=rendered, params=params)

    def _params(self, seed: int, pattern: str | None, max_tokens: int | None = None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            max_tokens=max_tokens or self.sampling.max_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=seed,
            stop=list(self.sampling.stop) or None,
            structured_outputs=None if pattern is None else StructuredOutputsParams(regex=pattern),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _verify(self, pattern: str) -> None:
        """Have vLLM check a pattern before any request uses it.

        Raises:
            RecipeError: vLLM does not support it.
        """
        from vllm.exceptions import VLLMClientError

        processor = self.opened.llm.llm_engine.input_processor
        try:
            self._params(0, pattern).verify(
                processor.model_config,
                processor.speculative_config,
                processor.structured_outputs_config,
                processor.tokenizer,
            )
        except (ValueError, VLLMClientError) as error:
            raise RecipeError(
                f"the pattern {pattern!r} is not a supported regular expression: {error}"
            ) from error
        self._verified_patterns.add(pattern)


def _chat_encoder(model_path: str, template: Mapping[str, Any] | None) -> ChatEncoder:
    config, processor = open_processor(model_path)
    chat = chat_encoder_for(config, processor, template, has_answers=False)
    if not isinstance(chat, ChatEncoder):
        raise CheckpointError(
            f"{model_path}: PaliGemma's prompts have bidirectional attention, which vLLM does not"
            " support; generate with {name: transformers}"
        )
    return chat


def _too_long(num_tokens: int, limit: int) -> GenerationFailure:
    detail = f"{num_tokens} tokens, expected fewer than {limit}: the engine generates at least one"
    return GenerationFailure(reason="sequence_too_long", detail=detail)
