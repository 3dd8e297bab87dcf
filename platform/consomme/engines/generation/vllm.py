"""Write texts with vLLM inside an actor, for many units at once.

One decision is made here: prompts go in as tokens that our own `ChatEncoder` made, so a family is
asked in the same way by every engine, and scored as it is asked. Passing requests through it is
`vllm_pump`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    Load,
    Request,
    Sampling,
    check_vision,
)
from consomme.engines.generation.vllm_pump import PreparedRequest, Pump
from consomme.engines.vllm_engine import EngineOptions, close_engine, open_engine
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_talk


class VLLMEngine:
    """Holds one engine and writes.

    Greedy decoding in float32 on a CPU gives the tokens that transformers gives. Sampling is
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
    ) -> None:
        """Start the engine.

        Args:
            model_path: Hugging Face folder on local disk.
            sampling: How tokens are chosen.
            options: How the engine runs.
            deadline_s: How long it may work on one text.
            stall_s: After how long without any token it is taken for hung.
            threads: Of the engine, CPU only.

        Raises:
            CheckpointError: vLLM cannot load the folder, or its family looks ahead in prompts.
        """
        self.sampling, options = sampling or Sampling(), options or EngineOptions()
        self._opened = open_engine(str(model_path), options, threads=threads)
        self.version = self._opened.version
        try:
            self.chat = _chat_encoder(model_path)
        except CheckpointError:
            close_engine(self._opened.llm)
            raise
        llm = self._opened.llm
        self._renderer, self._config = llm.llm_engine.renderer, llm.llm_engine.model_config
        self._verified: set[str] = set()
        self._pump = Pump(
            self._opened,
            self._prepare,
            max_running=options.max_num_seqs,
            deadline_s=deadline_s,
            stall_s=stall_s,
            threads=threads,
        )

    def write(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Answer requests; see `GenerationEngine.write`."""
        check_vision(self.chat.has_vision, requests)
        for pattern in {one.pattern for one in requests} - self._verified:
            if pattern is not None:
                self._verify(pattern)
        return [written.result() for written in self._pump.submit(requests)]

    def load(self) -> Load:
        """Tell how busy the engine is."""
        return self._pump.load()

    def close(self) -> None:
        """Shut the engine down and give its memory back; waiting callers get an error."""
        # An engine that hangs in our own process can only be left alone.
        if self._pump.close():
            close_engine(self._opened.llm)

    def _prepare(self, request: Request) -> PreparedRequest | GenerationFailure:
        """Put a request into tokens and pixels."""
        from vllm.exceptions import VLLMClientError
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        limit: int = self._config.max_model_len
        try:
            ids = self.chat.ask_short(request.turns, has_image=request.image is not None)
        except DataError as error:
            return GenerationFailure(reason="text_not_encodable", detail=str(error))
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if len(ids) >= limit:
            return _too_long(len(ids), limit)
        if request.image is None:
            (rendered,) = self._renderer.render_cmpl([parse_model_prompt(self._config, prompt)])
        else:
            try:
                prompt["multi_modal_data"] = {"image": request.image.convert("RGB")}
                (rendered,) = self._renderer.render_cmpl([parse_model_prompt(self._config, prompt)])
            except (ValueError, ZeroDivisionError, VLLMClientError) as error:
                size = f"{request.image.width} x {request.image.height}"
                detail = f"the model's processor does not take a picture of {size}: {error}"
                return GenerationFailure(reason="image_not_encodable", detail=detail)
        num_tokens = len(rendered["prompt_token_ids"])
        if num_tokens >= limit:
            return _too_long(num_tokens, limit)
        return PreparedRequest(prompt=rendered, params=self._params(request.seed, request.pattern))

    def _params(self, seed: int, pattern: str | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            max_tokens=self.sampling.max_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=seed,
            stop=list(self.sampling.stop) or None,
            structured_outputs=None if pattern is None else StructuredOutputsParams(regex=pattern),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _verify(self, pattern: str) -> None:
        """Let vLLM look at a pattern before any request has it.

        Raises:
            RecipeError: It is none that a text can be held to.
        """
        from vllm.exceptions import VLLMClientError

        processor = self._opened.llm.llm_engine.input_processor
        try:
            self._params(0, pattern).verify(
                processor.model_config,
                processor.speculative_config,
                processor.structured_outputs_config,
                processor.tokenizer,
            )
        except (ValueError, VLLMClientError) as error:
            raise RecipeError(
                f"the pattern {pattern!r} is no regular expression that a text can be held to:"
                f" {error}"
            ) from error
        self._verified.add(pattern)


def _chat_encoder(model_path: str) -> ChatEncoder:
    config, processor = open_talk(model_path)
    chat = chat_encoder_for(config, processor)
    if not isinstance(chat, ChatEncoder):
        raise CheckpointError(
            f"{model_path}: PaliGemma's prompts look ahead, which vLLM does not do; write with"
            " {name: transformers}"
        )
    return chat


def _too_long(num_tokens: int, limit: int) -> GenerationFailure:
    detail = f"{num_tokens} tokens, the engine takes fewer than {limit} and writes at least one"
    return GenerationFailure(reason="sequence_too_long", detail=detail)
