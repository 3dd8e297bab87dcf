"""Score what is said about pictures with vLLM, for models that are too large for one GPU.

One decision is made here: vLLM spreads a model over GPUs, takes a prompt with its answer, and says
how likely each of its tokens was. What is spoken comes from the same `ChatEncoder` as for our own
forward pass, and the end of vLLM's prompt is compared with it, token by token. It repeats a picture
for each of its captions, and computes logits for all of the prompt; where a model fits on one GPU,
`TransformersScorer` does less work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.engines.scoring.requests import (
    Encoded,
    EncodedConversation,
    Limits,
    NotScored,
    Score,
    ScoringRequest,
    encode,
    to_score,
)
from consomme.engines.vllm_engine import EngineOptions, close_engine, open_engine
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_talk

# Shapes: S spoken tokens.


class VLLMScorer:
    """Holds one engine and scores conversations, exactly as `TransformersScorer` does."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        max_caption_tokens: int = 256,
        truncates: bool = False,
        options: EngineOptions | None = None,
        threads: int = 1,
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            max_caption_tokens: Answers that are longer are not scored.
            truncates: Score the first `max_caption_tokens` of longer ones instead.
            options: How the engine runs; a picture's tokens count to `max_model_len` as well.
            threads: Of the engine, CPU only.

        Raises:
            CheckpointError: vLLM or transformers cannot load the folder.
        """
        opened = open_engine(str(model_path), options or EngineOptions(), threads=threads)
        self._llm, self._adapter = opened.llm, opened.adapter
        self.version = opened.version
        config, processor = open_talk(model_path)
        chat = chat_encoder_for(config, processor)
        if not isinstance(chat, ChatEncoder):
            raise CheckpointError(
                f"{model_path}: PaliGemma's prompts look ahead, which vLLM does not do; score with"
                " engine: transformers"
            )
        self.chat = chat
        self.limits = Limits(
            max_caption_tokens=max_caption_tokens,
            truncates=truncates,
            # It wants room for one more token, which it writes.
            max_positions=self._llm.model_config.max_model_len - 1,
        )
        import vllm

        self._params = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def score(self, questions: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `questions`: a `Score`, or why there is none.

        Raises:
            CheckpointError: vLLM puts the answer into other tokens than the model's own processor.
        """
        found = [
            encode(self.chat, question, number, self.limits)
            for number, question in enumerate(questions)
        ]
        requests, passages = [], []
        for question, encoded in zip(questions, found, strict=True):
            if isinstance(encoded, Encoded):
                passages += encoded.passages
                requests += [self._request(question, one) for one in encoded.passages]
        with _as_it_is():
            outputs = (
                self._llm.generate(
                    requests, self._params, use_tqdm=False, lora_request=self._adapter
                )
                if requests
                else []
            )
        nats = iter([_nats(one, output) for one, output in zip(passages, outputs, strict=True)])
        scores: list[Score | NotScored] = []
        for encoded in found:
            if isinstance(encoded, NotScored):
                scores.append(encoded)
                continue
            parts = [next(nats) for _ in encoded.passages]
            spans = encoded.passages[0].spoken.spans
            scores.append(to_score(parts[0], parts[-1], spans, encoded.is_truncated))
        return scores

    def _request(self, question: ScoringRequest, passage: EncodedConversation) -> dict[str, Any]:
        """Write a prompt: vLLM puts in as many placeholders as the picture needs by itself."""
        ids = passage.spoken.input_ids
        if passage.picture is None:
            return {"prompt_token_ids": ids}
        assert question.image is not None
        image = question.image.convert("RGB")
        short = self.chat.short_ids(question.turns)
        short = short[: len(short) - passage.num_cut]
        return {"prompt_token_ids": short, "multi_modal_data": {"image": image}}

    def close(self) -> None:
        """Shut the engine down and give its memory back; the scorer is of no use afterwards."""
        close_engine(self._llm)
        del self._llm


def _as_it_is() -> contextlib.AbstractContextManager[None]:
    """Keep torch from compiling on a CPU: ten seconds and a C++ compiler, to count ranks."""
    if torch.cuda.is_available():
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _nats(passage: EncodedConversation, output: Any) -> Tensor:
    """Nats of the spoken tokens (S,), float32."""
    spoken = passage.spoken
    begin = spoken.spans[0][0]
    tail = len(spoken.input_ids) - begin
    if list(output.prompt_token_ids[-tail:]) != spoken.input_ids[begin:]:
        raise CheckpointError(
            "vLLM's prompt ends with other tokens than the model's own processor gives:"
            f" {output.prompt_token_ids[-8:]} and {spoken.input_ids[-8:]}; score with"
            " engine: transformers"
        )
    shift = len(output.prompt_token_ids) - len(spoken.input_ids)
    return torch.tensor(
        [
            -output.prompt_logprobs[t + shift][spoken.input_ids[t]].logprob
            for first, last in spoken.spans
            for t in range(first, last)
        ]
    )
