"""Put conversations side by side as a model takes them, or one after the other in a row.

Two decisions are made here. What a model is given is what its own `forward` has names for, so one
function serves every family. And conversations in one row know nothing of each other: each sees
itself only, counts its positions from 0, and its first token is nobody's label.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from consomme.base.errors import RecipeError
from consomme.models.encoded import EncodedChat, EncodedPrompt, pad_and_join

# Shapes: B conversations, T token positions.

IGNORE_INDEX = -100
"""Label of a token that no loss is taken on."""


class Batcher:
    """Makes the inputs of one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Look at what the model takes.

        Args:
            model: An open transformers model.
            tokenizer: Its padding token, or else its last one, stands where nothing is.
        """
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        pad_id = tokenizer.pad_token_id
        self.pad_id: int = tokenizer.eos_token_id if pad_id is None else pad_id
        text = model.config.get_text_config()
        self._family = model.config.model_type
        self._attention = text._attn_implementation
        self._window: int | None = getattr(text, "sliding_window", None)
        # Families whose positions count time, height and width have it.
        self._rope = getattr(getattr(model, "model", None), "get_rope_index", None)
        if self._rope:
            self._rope_takes = frozenset(inspect.signature(self._rope).parameters)

    def check_packing(self) -> None:
        """See to it that conversations can stand in one row.

        Raises:
            RecipeError: The model's attention has rules that a mask cannot say.
        """
        if "token_type_ids" in self.takes or "position_ids" not in self.takes:
            raise RecipeError(
                f"pack_tokens: a {self._family} model looks ahead in pictures and prompts, so"
                " samples cannot share a row; set pack_tokens=null"
            )
        if self._attention not in ("sdpa", "eager"):
            raise RecipeError(
                f"pack_tokens: the model's attention is {self._attention}, expected sdpa or eager,"
                " which take a mask of our own; set pack_tokens=null"
            )

    def join(
        self,
        rows: Sequence[EncodedPrompt | EncodedChat],
        *,
        pad: Literal["left", "right"] = "right",
    ) -> dict[str, Tensor]:
        """Pad to the longest row.

        Returns:
            input_ids, attention_mask, all int64 (B, T); what kind each token is, for families that
            ask; and what belongs to the pictures, as the family joins them. With conversations that
            were answered also `labels` (B, T): spoken tokens, `IGNORE_INDEX` everywhere else.
        """
        width = max(len(row.input_ids) for row in rows)

        def padded(lists: Sequence[Sequence[int]], value: int) -> Tensor:
            fill = [[value] * (width - len(one)) for one in lists]
            both = zip(lists, fill, strict=True)
            if pad == "left":
                return torch.tensor([[*more, *one] for one, more in both])
            return torch.tensor([[*one, *more] for one, more in both])

        inputs = {
            "input_ids": padded([row.input_ids for row in rows], self.pad_id),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        }
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self.takes:
                inputs[name] = padded([row.token_types for row in rows], 0)
        inputs |= self._pixels(rows)
        spoken = [row for row in rows if isinstance(row, EncodedChat)]
        if len(spoken) == len(rows):
            inputs["labels"] = padded([labels_of(row) for row in spoken], IGNORE_INDEX)
        return inputs

    def pack(self, rows: Sequence[EncodedChat]) -> dict[str, Tensor]:
        """Put conversations one after the other into one row, T tokens long.

        Returns:
            As `join`, with B = 1; `attention_mask` (1, 1, T, T) says which token sees which, and
            `position_ids` (1, T), or (3, 1, T) for families with three of them.
        """
        ids = [token for row in rows for token in row.input_ids]
        owners = torch.tensor([k for k, row in enumerate(rows) for _ in row.input_ids])
        labels = []
        for row in rows:
            labels += [IGNORE_INDEX, *labels_of(row)[1:]]
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": self._block_mask(owners),
            "position_ids": torch.cat([self._positions(row) for row in rows], dim=-1),
            "labels": torch.tensor([labels]),
        }
        if "mm_token_type_ids" in self.takes:
            inputs["mm_token_type_ids"] = torch.tensor(
                [[t for row in rows for t in row.token_types]]
            )
        return inputs | self._pixels(rows)

    def _pixels(self, rows: Sequence[EncodedPrompt | EncodedChat]) -> dict[str, Tensor]:
        pixels = [row.pixels for row in rows if row.pixels is not None]
        names = sorted(self.takes.intersection(pixels[0].inputs if pixels else ()))
        return {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}

    def _block_mask(self, owners_T: Tensor) -> Tensor:
        place_T = torch.arange(len(owners_T))
        behind_TT = place_T[:, None] - place_T[None, :]
        sees_TT = (owners_T[:, None] == owners_T[None, :]) & (behind_TT >= 0)
        if self._window is not None:
            sees_TT &= behind_TT < self._window
        if self._attention == "sdpa":
            return sees_TT[None, None]
        # Eager attention adds the mask to what it compares.
        mask_TT = torch.zeros(sees_TT.shape).masked_fill_(~sees_TT, torch.finfo(torch.float32).min)
        return mask_TT[None, None]

    def _positions(self, row: EncodedChat) -> Tensor:
        if self._rope is None:
            return torch.arange(len(row.input_ids))[None]
        if row.pixels is None:
            return torch.arange(len(row.input_ids)).expand(3, 1, -1)
        beside = {n: v for n, v in row.pixels.inputs.items() if n in self._rope_takes}
        positions, _ = self._rope(
            input_ids=torch.tensor([row.input_ids]),
            mm_token_type_ids=torch.tensor([row.token_types]),
            attention_mask=torch.ones((1, len(row.input_ids)), dtype=torch.long),
            **beside,
        )
        found: Tensor = positions.cpu()
        return found


def labels_of(row: EncodedChat) -> list[int]:
    """The spoken tokens at their places, `IGNORE_INDEX` everywhere else."""
    labels = [IGNORE_INDEX] * len(row.input_ids)
    for begin, end in row.spans:
        labels[begin:end] = row.input_ids[begin:end]
    return labels
