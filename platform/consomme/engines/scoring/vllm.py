"""Score conversations about images with vLLM, for models that are too large for one GPU.

vLLM shards a model over GPUs, takes a prompt together with its answer, and returns the log
probability of each prompt token. The tokens come from the same `ChatEncoder` as for our own forward
pass, and the end of vLLM's prompt is compared with them, token by token. vLLM repeats an image for
each of its captions, and computes logits for the whole prompt; where a model fits on one GPU,
`TransformersScorer` does less work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError, EngineLostError, RecipeError
from consomme.base.sample import place_images
from consomme.engines.contrast import NEEDS_LOGITS
from consomme.engines.scoring.requests import (
    EncodedConversation,
    EncodedRequest,
    NotScored,
    Score,
    ScoringLimits,
    ScoringRequest,
    encode_request,
    to_score,
)
from consomme.engines.vllm_engine import EngineOptions, OpenedEngine, close_engine, open_engine
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_processor

# Shapes: S scored tokens.


class VLLMScorer:
    """Holds one engine and scores conversations; has the results of `TransformersScorer`."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        max_caption_tokens: int = 256,
        truncates: bool = False,
        options: EngineOptions | None = None,
        threads: int = 1,
        template: Mapping[str, Any] | None = None,
        opened: OpenedEngine | None = None,
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            max_caption_tokens: Conversations with more labelled tokens are not scored.
            truncates: Score the first `max_caption_tokens` of longer ones instead.
            options: How the engine runs; image tokens count towards `max_model_len`.
            threads: Of the engine, CPU only.
            template: Options of the chat template.
            opened: The engine of this folder, if another object has opened it; who did closes it.

        Raises:
            CheckpointError: vLLM or transformers cannot load the folder.
        """
        self._owns = opened is None
        opened = opened or open_engine(str(model_path), options or EngineOptions(), threads=threads)
        self.opened, self._llm, self._adapter = opened, opened.llm, opened.adapter
        self._max_images = opened.max_images
        self.version = opened.version
        config, processor = open_processor(model_path)
        chat = chat_encoder_for(config, processor, template)
        if not isinstance(chat, ChatEncoder):
            raise CheckpointError(
                f"{model_path}: PaliGemma's prompts have bidirectional attention, which vLLM does"
                " not support; score with engine: transformers"
            )
        self.chat = chat
        self.limits = ScoringLimits(
            max_caption_tokens=max_caption_tokens,
            truncates=truncates,
            # vLLM generates one more token, which needs a position.
            max_positions=self._llm.model_config.max_model_len - 1,
        )
        import vllm

        self._params = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def score(self, requests: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `requests`: a `Score`, or why there is none.

        Raises:
            CheckpointError: vLLM tokenizes the answer differently than the model's own processor.
            EngineLostError: vLLM's process has ended.
            RecipeError: A request has a contrast.
        """
        if any(request.contrast is not None for request in requests):
            raise RecipeError(NEEDS_LOGITS.format(engine="vLLM"))
        encoded = [self._encode(request, index) for index, request in enumerate(requests)]
        prompts, conversations = [], []
        for request, one in zip(requests, encoded, strict=True):
            if isinstance(one, EncodedRequest):
                conversations += one.conversations
                prompts += [self._prompt(request, c) for c in one.conversations]
        with _eager_on_cpu():
            outputs = self._generate(prompts) if prompts else []
        nlls = iter([_token_nll(c, out) for c, out in zip(conversations, outputs, strict=True)])
        scores: list[Score | NotScored] = []
        for one in encoded:
            if isinstance(one, NotScored):
                scores.append(one)
                continue
            scores.append(to_score(one, [next(nlls) for _ in one.conversations]))
        return scores

    def _generate(self, prompts: Sequence[dict[str, Any]]) -> Sequence[Any]:
        """Let vLLM score prompts.

        Raises:
            EngineLostError: Its process has ended.
        """
        try:
            with self.opened.using:
                found: Sequence[Any] = self._llm.generate(
                    prompts, self._params, use_tqdm=False, lora_request=self._adapter
                )
        # vLLM raises one of several classes when its process is gone.
        except Exception as error:
            if not self.opened.is_dead():
                raise
            raise EngineLostError(f"vLLM's process has ended: {error}") from error
        return found

    def _encode(self, request: ScoringRequest, index: int) -> EncodedRequest | NotScored:
        turns = place_images(request.turns, len(request.images))
        num_shown = sum(len(turn.image_indices) for turn in turns)
        if self.chat.has_vision and num_shown > self._max_images:
            return NotScored(
                reason="conversation_unsupported",
                detail=f"found {num_shown} images, vLLM takes at most {self._max_images} of this"
                " family",
            )
        return encode_request(self.chat, request, index, self.limits)

    def _prompt(self, request: ScoringRequest, conversation: EncodedConversation) -> dict[str, Any]:
        """Build a prompt with one placeholder for each image, which vLLM expands itself."""
        if not conversation.image_keys:
            return {"prompt_token_ids": conversation.chat.input_ids}
        turns = place_images(request.turns, len(request.images))
        shown = [request.images[k].convert("RGB") for turn in turns for k in turn.image_indices]
        ids = self.chat.unexpanded_ids(turns)
        ids = ids[: len(ids) - conversation.num_truncated]
        image = shown[0] if len(shown) == 1 else shown
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": image}}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the model's weights; see `VLLMEngine.load_weights`."""
        self.opened.load_weights(weights)

    def close(self) -> None:
        """Shut its own engine down and free its memory; it cannot be used afterwards."""
        if self._owns:
            close_engine(self._llm)
        del self._llm


def _eager_on_cpu() -> contextlib.AbstractContextManager[None]:
    """Keep torch from compiling on a CPU: ten seconds and a C++ compiler, to count ranks."""
    if torch.cuda.is_available():
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _token_nll(conversation: EncodedConversation, output: Any) -> Tensor:
    """Return the nll of the scored tokens (S,), float32."""
    chat = conversation.chat
    begin = chat.spans[0][0]
    if len(conversation.image_keys) > 1:
        # vLLM has its own code for several images, which must show each as the family does.
        begin = 0
    tail = len(chat.input_ids) - begin
    if list(output.prompt_token_ids[-tail:]) != chat.input_ids[begin:]:
        raise CheckpointError(
            "vLLM's prompt has other tokens than the model's own processor gives: found"
            f" {output.prompt_token_ids[-8:]}, expected {chat.input_ids[-8:]}; score with"
            " engine: transformers"
        )
    shift = len(output.prompt_token_ids) - len(chat.input_ids)
    return torch.tensor(
        [
            -output.prompt_logprobs[t + shift][chat.input_ids[t]].logprob
            for first, last in chat.spans
            for t in range(first, last)
        ]
    )
