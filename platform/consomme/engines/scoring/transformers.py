"""Score conversations with a model's own forward pass, with the image and without.

Requests are processed in windows whose bounds depend on the requests alone, so a score does not
depend on the number of workers. In a window each image is encoded once, and goes through the
language model once, however many captions it has (see `prefix_tree`). Rows with an image and rows
without are sorted by length and batched by a token budget; the head runs on scored positions only,
a few megabytes of logits at a time, in float32. A micro-batch that runs out of memory is halved.
The next window is prepared while the model works on this one; the first windows are small, because
the model has to wait for the very first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.engines.memory import batch_by_budget, halve_on_oom
from consomme.engines.scoring.prefix_tree import PrefixLimits, PrefixTree, batch_trees, build_trees
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
from consomme.engines.scoring.vision_cache import VisionFeatureCache
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import Pixels
from consomme.models.weights import open_model

# Shapes: B rows, T token positions, S scored tokens of all rows, V vocabulary, W width.

TokenNll = Callable[[Tensor, Tensor], Tensor]

WINDOW_ROWS = 128
FIRST_WINDOW_ROWS = 32
WINDOW_VALUES = 1 << 27
"""Numbers in the prepared images of a window: half a gigabyte."""


@dataclass
class _Window:
    """Requests that are processed together."""

    requests: list[tuple[int, EncodedRequest]] = field(default_factory=list)
    """Index of each request, and its tokens."""

    conversations: list[EncodedConversation] = field(default_factory=list)
    images: dict[object, Pixels] = field(default_factory=dict)


class TransformersScorer:
    """Holds one model and scores conversations about images."""

    def __init__(
        self,
        model_path: str | Path,
        token_nll: TokenNll,
        *,
        token_budget: int | None = None,
        max_caption_tokens: int = 256,
        truncates: bool = False,
        threads: int = 1,
        dtype: str = "auto",
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            token_nll: (logits_SV, labels_S) -> nats (S,); `consomme.curate.perplexity.token_nll`.
            token_budget: Padded tokens per micro-batch; bounds memory. None takes the fastest:
                1,024 on a CPU, whose caches hold no more, and 16,384 on a GPU.
            max_caption_tokens: Conversations with more labelled tokens are not scored.
            truncates: Score the first `max_caption_tokens` of longer ones instead.
            threads: torch threads of this process.
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU and float32 on a CPU.
        """
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.model, processor = open_model(model_path, getattr(torch, dtype))
        self.model.to(self.device)
        self.chat = chat_encoder_for(self.model.config, processor)
        self.token_nll = token_nll
        self.token_budget = token_budget or (16_384 if self.device.type == "cuda" else 1_024)
        self.base_model = self.model.model
        self.head = self.model.get_output_embeddings()
        self._forward_args = frozenset(inspect.signature(self.base_model.forward).parameters)
        # A thousand numbers of an image are roughly as much work as one token.
        values = self.token_budget * 1024
        self.vision_cache = VisionFeatureCache(self.model, values) if self.chat.has_vision else None
        text = self.model.config.get_text_config()
        self.limits = ScoringLimits(
            max_caption_tokens=max_caption_tokens,
            truncates=truncates,
            max_positions=text.max_position_embeddings,
        )
        self._has_multimodal_rope = hasattr(self.base_model, "get_rope_index")
        if self._has_multimodal_rope:
            rope_index = self.base_model.get_rope_index
            self._rope_args = frozenset(inspect.signature(rope_index).parameters)
        self.prefix_limits = self._make_prefix_limits(text)
        chunk = (1 << 24) // max(1, self.head.weight.shape[0])
        self._head_rows = max(16, chunk)

    def _make_prefix_limits(self, text: Any) -> PrefixLimits | None:
        """Return the limits of trees; None for families whose attention has rules of its own."""
        if "token_type_ids" in self._forward_args or "position_ids" not in self._forward_args:
            # Attention is bidirectional within Gemma's images and PaliGemma's prompts.
            return None
        if text._attn_implementation not in ("sdpa", "eager"):
            return None
        # A token costs about 24 W² in dense layers and 4 T W in attention, so attention over a row
        # of T = W tokens adds a sixth.
        return PrefixLimits(
            max_tokens=max(256, text.hidden_size), window=getattr(text, "sliding_window", None)
        )

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `requests`: a `Score`, or why there is none.
        """
        results: dict[int, Score | NotScored] = {}
        for window in _prefetch(self._windows(requests, results)):
            features = self.vision_cache.encode(window.images) if self.vision_cache else {}
            nlls = iter(self._token_nlls(window.conversations, features))
            for index, encoded in window.requests:
                parts = [next(nlls) for _ in encoded.conversations]
                spans = encoded.conversations[0].chat.spans
                results[index] = to_score(parts[0], parts[-1], spans, encoded.is_truncated)
        return [results[index] for index in range(len(requests))]

    def _windows(
        self, requests: Sequence[ScoringRequest], results: dict[int, Score | NotScored]
    ) -> Iterator[_Window]:
        """Encode requests and yield them window by window; put a `NotScored` into `results`."""
        window, num_values, max_rows = _Window(), 0, FIRST_WINDOW_ROWS
        for index, request in enumerate(requests):
            encoded = encode_request(self.chat, request, index, self.limits)
            if isinstance(encoded, NotScored):
                results[index] = encoded
                continue
            is_full = len(window.requests) >= max_rows or num_values >= WINDOW_VALUES
            # Conversations about one image stay in one window.
            if is_full and encoded.conversations[0].image_key not in window.images:
                yield window
                window, num_values, max_rows = _Window(), 0, min(2 * max_rows, WINDOW_ROWS)
            window.requests.append((index, encoded))
            window.conversations += encoded.conversations
            for conversation in encoded.conversations:
                pixels = conversation.chat.pixels
                if pixels is not None and conversation.image_key not in window.images:
                    window.images[conversation.image_key] = pixels.to(self.model.dtype)
                    num_values += pixels.num_values
        if window.conversations:
            yield window

    def _token_nlls(
        self, conversations: Sequence[EncodedConversation], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Run conversations through the language model.

        Returns:
            For each conversation the nll of its scored tokens (S,), on the CPU.
        """
        trees = build_trees(conversations, self.prefix_limits)
        trees.sort(key=lambda tree: (len(tree), tree.suffixes[0].ids, tree.suffixes[0].indices))
        nlls: dict[int, Tensor] = {}
        for batch in batch_by_budget([len(tree) for tree in trees], self.token_budget):
            batch_of_trees = [trees[k] for k in batch]
            parts = halve_on_oom(
                lambda some: self._forward(some, features), batch_of_trees, _split_tree
            )
            suffixes = [suffix for tree in batch_of_trees for suffix in tree.suffixes]
            for suffix, part in zip(suffixes, parts, strict=True):
                nlls |= dict.fromkeys(suffix.indices, part)
        return [nlls[index] for index in range(len(conversations))]

    def _forward(
        self, trees: Sequence[PrefixTree], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Return the nll of the scored tokens, (S,) float32 on the CPU, suffix by suffix."""
        batch = batch_trees(trees, self._image_positions if self._has_multimodal_rope else None)
        inputs: dict[str, Any] = {"input_ids": batch.ids_BT, "attention_mask": batch.mask}
        if batch.positions is not None:
            inputs["position_ids"] = batch.positions
            inputs["attention_mask"] = batch.mask.to(self.model.dtype)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self._forward_args:
                inputs[name] = batch.types_BT
        with_image = [tree for tree in trees if tree.pixels is not None]
        if self.vision_cache and with_image:
            inputs |= self.vision_cache.other_inputs([t.pixels for t in with_image if t.pixels])
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if self.vision_cache and with_image:
            inputs["mm_encoder_outputs"] = {
                "image": self.vision_cache.join([features[tree.image_key] for tree in with_image])
            }
        hidden_BTW = self.base_model(**inputs, use_cache=False).last_hidden_state
        hidden_SW = hidden_BTW[
            torch.tensor(batch.rows, device=self.device),
            torch.tensor(batch.predictors, device=self.device),
        ]
        labels_S = torch.tensor(batch.labels, device=self.device)
        nlls = [
            self.token_nll(self.head(hidden), labels)
            for hidden, labels in zip(
                torch.split(hidden_SW, self._head_rows),
                torch.split(labels_S, self._head_rows),
                strict=True,
            )
        ]
        return list(torch.split(torch.cat(nlls).float().cpu(), batch.counts))

    def _image_positions(self, tree: PrefixTree) -> Tensor:
        """Return the multimodal RoPE positions (3, prefix length) of a prefix with an image."""
        assert tree.pixels is not None
        assert self.vision_cache is not None
        image_inputs = self.vision_cache.other_inputs([tree.pixels])
        inputs = {name: value for name, value in image_inputs.items() if name in self._rope_args}
        positions, _ = self.base_model.get_rope_index(
            input_ids=torch.tensor([tree.ids]),
            mm_token_type_ids=torch.tensor([tree.types]),
            attention_mask=torch.ones((1, len(tree.ids)), dtype=torch.long),
            **inputs,
        )
        of_prefix: Tensor = positions[:, 0].cpu()
        return of_prefix


def _prefetch(windows: Iterator[_Window]) -> Iterator[_Window]:
    """Prepare the next window in a thread while the model works on this one."""
    with ThreadPoolExecutor(1, "windows") as pool:
        upcoming = pool.submit(next, windows, None)
        while (window := upcoming.result()) is not None:
            upcoming = pool.submit(next, windows, None)
            yield window


def _split_tree(tree: PrefixTree) -> list[PrefixTree]:
    return [] if tree.is_single else tree.halves()
