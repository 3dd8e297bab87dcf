"""Score captions with a VLM's own forward pass: once with the picture, once without.

One decision is made here: samples are micro-batched by length inside the batch they came in, so the
result depends on the batch alone, not on how many workers there are. The language model's head
runs on caption positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consomme.base.errors import DataError
from consomme.base.sample import Turn
from consomme.models.chat import IGNORE_INDEX, Chat, Encoded
from consomme.models.weights import open_vlm

# Shapes: B samples, T token positions, N labelled tokens, V vocabulary, W width.

TokenNll = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one caption scored, in nats."""

    nll: float
    """Image, prompt and earlier tokens as context."""

    nll_text: float
    """Prompt and earlier tokens only."""

    num_tokens: int
    """Labelled tokens: the caption and the token that ends the turn."""


@dataclass(frozen=True, kw_only=True)
class NotScored:
    """Why one caption has no score."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class TransformersScorer:
    """Holds one VLM and scores lists of (picture, caption)."""

    def __init__(
        self,
        model_path: str | Path,
        token_nll: TokenNll,
        *,
        prompt: str,
        token_budget: int = 4096,
        max_caption_tokens: int = 256,
        threads: int = 1,
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            token_nll: (logits_NV, labels_N) -> nats (N,); `consomme.curate.perplexity.token_nll`.
            prompt: What the user turn asks for.
            token_budget: Padded tokens per micro-batch; bounds memory.
            max_caption_tokens: Longer captions are not scored.
            threads: torch threads of this process.
        """
        torch.set_num_threads(threads)
        self.model, processor = open_vlm(model_path)
        self.chat = Chat(self.model, processor)
        self.token_nll, self.prompt = token_nll, prompt
        self.token_budget, self.max_caption_tokens = token_budget, max_caption_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def encode(self, caption: str, *, has_image: bool) -> Encoded:
        """Tokenise prompt and caption."""
        turns = (Turn(role="user", content=self.prompt), Turn(role="assistant", content=caption))
        return self.chat.encode(turns, has_image=has_image)

    @torch.inference_mode()
    def score(
        self, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> list[Score | NotScored]:
        """Score each caption.

        Returns:
            Aligned with `captions`: a `Score`, or why there is none.
        """
        results: dict[int, Score | NotScored] = {}
        encoded: dict[int, Encoded] = {}
        for number, caption in enumerate(captions):
            try:
                row = self.encode(caption, has_image=True)
            except DataError as error:
                results[number] = NotScored(reason="text_not_encodable", detail=str(error))
                continue
            if row.num_labels > self.max_caption_tokens:
                detail = f"{row.num_labels} caption tokens, at most {self.max_caption_tokens}"
                results[number] = NotScored(reason="caption_too_long", detail=detail)
            else:
                encoded[number] = row
        order = sorted(encoded, key=lambda number: (len(encoded[number].input_ids), number))
        for group in _groups(order, encoded, self.token_budget):
            rows = [encoded[number] for number in group]
            pixels = self.chat.pixels([images[number] for number in group])
            with_image = self._nll(rows, pixels)
            blind = [self._blind(row) for row in rows]
            without = self._nll(blind, None)
            for number, row, nll, nll_text in zip(group, rows, with_image, without, strict=True):
                results[number] = Score(nll=nll, nll_text=nll_text, num_tokens=row.num_labels)
        return [results[number] for number in range(len(captions))]

    def _blind(self, row: Encoded) -> Encoded:
        """The same conversation without its picture tokens."""
        image = self.chat.image_token_id
        kept = [
            (token, label)
            for token, label in zip(row.input_ids, row.labels, strict=True)
            if token != image or label != IGNORE_INDEX
        ]
        return Encoded(
            input_ids=[token for token, _ in kept],
            labels=[label for _, label in kept],
            has_image=False,
        )

    def _nll(self, rows: Sequence[Encoded], pixels: Tensor | None) -> list[float]:
        batch = {key: value.to(self.device) for key, value in self.chat.collate(rows).items()}
        labels_BT = batch.pop("labels")
        inputs: dict[str, Any] = dict(batch)
        if pixels is not None:
            inputs["pixel_values"] = pixels.to(self.device, self.model.dtype)
        hidden_BTW = self.model.model(**inputs, use_cache=False).last_hidden_state
        target_BT = labels_BT[:, 1:]
        labelled_BT = target_BT != IGNORE_INDEX
        logits_NV = self.model.lm_head(hidden_BTW[:, :-1][labelled_BT])
        nll_N = self.token_nll(logits_NV, target_BT[labelled_BT])
        row_N = labelled_BT.nonzero()[:, 0]
        nll_B = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        nll_B.index_add_(0, row_N, nll_N.double())
        return [float(value) for value in nll_B]


def _groups(order: Sequence[int], encoded: dict[int, Encoded], budget: int) -> list[list[int]]:
    """Cut length-sorted samples into micro-batches of at most `budget` padded tokens."""
    groups: list[list[int]] = []
    for number in order:
        length = len(encoded[number].input_ids)
        if groups and (len(groups[-1]) + 1) * length <= budget:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
