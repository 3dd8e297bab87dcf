"""Score what is said about pictures with a model's own forward pass: with the picture and without.

Decisions made here. A unit's samples are taken in windows, cut by what they hold and nothing else,
so a score does not depend on how many workers there are. In a window each picture is encoded once,
and goes through the language model once, however many captions it has (see `trees`). Rows with a
picture and rows without go together, sorted by length and cut by a token budget; the head runs on
spoken positions only, a few megabytes of logits at a time, in float32. A micro-batch that does not
fit into memory is halved. The next window is prepared while the model works on this one, and the
first ones are small, because for the very first the model has to wait.
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

from consomme.engines.memory import groups, halving
from consomme.engines.scoring.prefix_tree import PrefixLimits, PrefixTree, build_trees, lay_out
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
from consomme.engines.scoring.vision_cache import VisionFeatureCache
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import Pixels
from consomme.models.weights import open_scorer

# Shapes: B rows, T token positions, S spoken tokens of all rows, V vocabulary, W width, P pictures.

TokenNll = Callable[[Tensor, Tensor], Tensor]

WINDOW_ROWS = 128
FIRST_WINDOW_ROWS = 32
WINDOW_VALUES = 1 << 27
"""Numbers in the prepared pictures of a window: half a gigabyte."""


@dataclass
class _Window:
    """Conversations that are worked on together."""

    conversations: list[tuple[int, Encoded]] = field(default_factory=list)
    """Which question, and how it is in tokens."""

    passages: list[EncodedConversation] = field(default_factory=list)
    pictures: dict[object, Pixels] = field(default_factory=dict)


class TransformersScorer:
    """Holds one model and scores conversations about pictures."""

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
            token_budget: Padded tokens per micro-batch; bounds memory. None takes what is quick:
                1,024 on a CPU, whose caches hold no more, and 16,384 on a GPU.
            max_caption_tokens: Answers that are longer are not scored.
            truncates: Score the first `max_caption_tokens` of longer ones instead.
            threads: torch threads of this process.
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU and float32 on a CPU.
        """
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.model, processor = open_scorer(model_path, getattr(torch, dtype))
        self.model.to(self.device)
        self.chat = chat_encoder_for(self.model.config, processor)
        self.token_nll = token_nll
        self.token_budget = token_budget or (16_384 if self.device.type == "cuda" else 1_024)
        self.body = self.model.model
        self.head = self.model.get_output_embeddings()
        self._body_takes = frozenset(inspect.signature(self.body.forward).parameters)
        # A picture may have as many numbers as a thousand tokens, roughly, for the same work.
        values = self.token_budget * 1024
        self.vision_cache = VisionFeatureCache(self.model, values) if self.chat.has_vision else None
        text = self.model.config.get_text_config()
        self.limits = Limits(
            max_caption_tokens=max_caption_tokens,
            truncates=truncates,
            max_positions=text.max_position_embeddings,
        )
        self._has_three_positions = hasattr(self.body, "get_rope_index")
        if self._has_three_positions:
            self._rope_takes = frozenset(inspect.signature(self.body.get_rope_index).parameters)
        self.growth = self._prefix_limits(text)
        chunk = (1 << 24) // max(1, self.head.weight.shape[0])
        self._head_rows = max(16, chunk)

    def _prefix_limits(self, text: Any) -> PrefixLimits | None:
        """How trees may grow; None for families whose attention has rules of its own."""
        if "token_type_ids" in self._body_takes or "position_ids" not in self._body_takes:
            # Gemma's pictures and PaliGemma's prompts look ahead.
            return None
        if text._attn_implementation not in ("sdpa", "eager"):
            return None
        # A token costs about 24 W² in dense layers and 4 T W in attention, so this is a sixth more.
        return PrefixLimits(
            cheap=max(256, text.hidden_size), most=getattr(text, "sliding_window", None)
        )

    @torch.inference_mode()
    def score(self, questions: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `questions`: a `Score`, or why there is none.
        """
        found: dict[int, Score | NotScored] = {}
        for window in _ahead(self._windows(questions, found)):
            features = self.vision_cache.encode(window.pictures) if self.vision_cache else {}
            nats = iter(self._nats(window.passages, features))
            for number, encoded in window.conversations:
                parts = [next(nats) for _ in encoded.passages]
                spans = encoded.passages[0].spoken.spans
                found[number] = to_score(parts[0], parts[-1], spans, encoded.is_truncated)
        return [found[number] for number in range(len(questions))]

    def _windows(
        self, questions: Sequence[ScoringRequest], found: dict[int, Score | NotScored]
    ) -> Iterator[_Window]:
        """Encode conversations, and hand them out a window at a time; note what is not scored."""
        window, values, most = _Window(), 0, FIRST_WINDOW_ROWS
        for number, question in enumerate(questions):
            encoded = encode(self.chat, question, number, self.limits)
            if isinstance(encoded, NotScored):
                found[number] = encoded
                continue
            is_full = len(window.conversations) >= most or values >= WINDOW_VALUES
            if is_full and encoded.passages[0].picture not in window.pictures:
                yield window
                window, values, most = _Window(), 0, min(2 * most, WINDOW_ROWS)
            window.conversations.append((number, encoded))
            window.passages += encoded.passages
            for passage in encoded.passages:
                pixels = passage.spoken.pixels
                if pixels is not None and passage.picture not in window.pictures:
                    window.pictures[passage.picture] = pixels.to(self.model.dtype)
                    values += pixels.num_values
        if window.passages:
            yield window

    def _nats(
        self, passages: Sequence[EncodedConversation], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Run passages through the language model; nats of their spoken tokens (S,), on the CPU."""
        trees = build_trees(passages, self.growth)
        trees.sort(key=lambda tree: (len(tree), tree.suffixes[0].ids, tree.suffixes[0].numbers))
        nats: dict[int, Tensor] = {}
        sizes = [(k, len(tree)) for k, tree in enumerate(trees)]
        for group in groups(sizes, self.token_budget):
            some = [trees[k] for k in group]
            parts = halving(lambda few: self._forward(few, features), some, _halves)
            suffixes = [suffix for tree in some for suffix in tree.suffixes]
            for suffix, part in zip(suffixes, parts, strict=True):
                nats |= dict.fromkeys(suffix.numbers, part)
        return [nats[number] for number in range(len(passages))]

    def _forward(
        self, trees: Sequence[PrefixTree], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Return nats of the spoken tokens, (S,) float32 on the CPU, suffix by suffix."""
        layout = lay_out(trees, self._three_positions if self._has_three_positions else None)
        inputs: dict[str, Any] = {"input_ids": layout.ids_BT, "attention_mask": layout.mask}
        if layout.positions is not None:
            inputs["position_ids"] = layout.positions
            inputs["attention_mask"] = layout.mask.to(self.model.dtype)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self._body_takes:
                inputs[name] = layout.types_BT
        seeing = [tree for tree in trees if tree.pixels is not None]
        if self.vision_cache and seeing:
            inputs |= self.vision_cache.beside([tree.pixels for tree in seeing if tree.pixels])
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if self.vision_cache and seeing:
            inputs["mm_encoder_outputs"] = {
                "image": self.vision_cache.joined([features[tree.picture] for tree in seeing])
            }
        hidden_BTW = self.body(**inputs, use_cache=False).last_hidden_state
        hidden_SW = hidden_BTW[
            torch.tensor(layout.rows, device=self.device),
            torch.tensor(layout.predictors, device=self.device),
        ]
        labels_S = torch.tensor(layout.labels, device=self.device)
        nats = [
            self.token_nll(self.head(hidden), labels)
            for hidden, labels in zip(
                torch.split(hidden_SW, self._head_rows),
                torch.split(labels_S, self._head_rows),
                strict=True,
            )
        ]
        return list(torch.split(torch.cat(nats).float().cpu(), layout.counts))

    def _three_positions(self, tree: PrefixTree) -> Tensor:
        """Where a prefix with a picture is, for families that count time, height and width."""
        assert tree.pixels is not None
        assert self.vision_cache is not None
        beside = self.vision_cache.beside([tree.pixels])
        inputs = {name: value for name, value in beside.items() if name in self._rope_takes}
        positions, _ = self.body.get_rope_index(
            input_ids=torch.tensor([tree.ids]),
            mm_token_type_ids=torch.tensor([tree.types]),
            attention_mask=torch.ones((1, len(tree.ids)), dtype=torch.long),
            **inputs,
        )
        found: Tensor = positions[:, 0].cpu()
        return found


def _ahead(windows: Iterator[_Window]) -> Iterator[_Window]:
    """Prepare the next window in a thread while the model works on this one."""
    with ThreadPoolExecutor(1, "windows") as pool:
        coming = pool.submit(next, windows, None)
        while (window := coming.result()) is not None:
            coming = pool.submit(next, windows, None)
            yield window


def _halves(tree: PrefixTree) -> list[PrefixTree]:
    return [] if tree.is_plain else tree.halves()
