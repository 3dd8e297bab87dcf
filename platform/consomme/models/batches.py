"""Build model inputs from encoded conversations: padded to a batch, or packed into one row.

A model is given the inputs that its own `forward` has parameters for, so one class serves every
family. Conversations packed into one row are independent: each attends to itself only, counts its
positions from 0, and its first token is never a label. Layers with a window or with chunks get a
mask of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from consomme.models.attention import CHUNKED, PackingMasks, packing_masks
from consomme.models.encoded import (
    EncodedChat,
    EncodedPrompt,
    pad_and_join,
    pad_token_inputs,
)

# Shapes: B conversations, T token positions.

_HALF_PRECISION = (torch.bfloat16, torch.float16)

IGNORE_INDEX = -100
"""Label of a token that no loss is taken on."""


class Batcher:
    """Builds the inputs of one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Inspect the parameters of the model's `forward`.

        Args:
            model: An open transformers model.
            tokenizer: Its padding token fills rows, or its end token if it has no padding token.
        """
        self.forward_args = frozenset(inspect.signature(model.forward).parameters)
        pad_id = tokenizer.pad_token_id
        self.pad_id: int = tokenizer.eos_token_id if pad_id is None else pad_id
        self._dtype = model.dtype
        self._attention = model.config.get_text_config()._attn_implementation
        self.packing: PackingMasks | str = packing_masks(model)
        """Masks of rows of several conversations, or why there are none."""
        # Only families with multimodal RoPE (positions in time, height and width) have it.
        self._get_rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
        if self._get_rope_index:
            self._rope_args = frozenset(inspect.signature(self._get_rope_index).parameters)

    def collate(
        self,
        rows: Sequence[EncodedPrompt | EncodedChat],
        *,
        padding_side: Literal["left", "right"] = "right",
    ) -> dict[str, Tensor]:
        """Pad conversations to the longest one.

        Returns:
            `input_ids` and `attention_mask`, int64 (B, T); token types, for families that need
            them; and the pixels, joined as the family joins them. If all rows are `EncodedChat`,
            also `labels` (B, T): labelled tokens, `IGNORE_INDEX` everywhere else.
        """
        width = max(len(row.input_ids) for row in rows)

        def padded(lists: Sequence[Sequence[int]], value: int) -> Tensor:
            padding = [[value] * (width - len(one)) for one in lists]
            pairs = zip(lists, padding, strict=True)
            if padding_side == "left":
                return torch.tensor([[*fill, *one] for one, fill in pairs])
            return torch.tensor([[*one, *fill] for one, fill in pairs])

        inputs = {
            "input_ids": padded([row.input_ids for row in rows], self.pad_id),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        }
        inputs |= self._token_inputs(
            [row.token_inputs for row in rows], width, is_left=padding_side == "left"
        )
        inputs |= self._pixels(rows)
        chats = [row for row in rows if isinstance(row, EncodedChat)]
        if len(chats) == len(rows):
            inputs["labels"] = padded([labels_of(row) for row in chats], IGNORE_INDEX)
        return inputs

    def pack(self, rows: Sequence[EncodedChat]) -> dict[str, Any]:
        """Concatenate conversations into one row of T tokens.

        Returns:
            As `collate`, with B = 1; `attention_mask` (1, 1, T, T) says which token attends to
            which, or is a dict of such masks by type of layers; and `position_ids` is (1, T), or
            (3, 1, T) for families with multimodal RoPE.
        """
        assert isinstance(self.packing, PackingMasks), self.packing
        ids = [token for row in rows for token in row.input_ids]
        owners = torch.tensor([k for k, row in enumerate(rows) for _ in row.input_ids])
        labels = []
        for row in rows:
            labels += [IGNORE_INDEX, *labels_of(row)[1:]]
        masks = {kind: self._block_mask(owners, kind) for kind in self.packing.kinds}
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": masks if self.packing.is_by_type else next(iter(masks.values())),
            "position_ids": torch.cat([self._positions(row) for row in rows], dim=-1),
            "labels": torch.tensor([labels]),
        }
        # Rows of one conversation each, then side by side.
        apart = [self._token_inputs([row.token_inputs], len(row.input_ids)) for row in rows]
        for name in dict.fromkeys(name for one in apart for name in one):
            some = next(one[name] for one in apart if name in one)
            inputs[name] = torch.cat(
                [
                    one.get(name, some.new_zeros((1, len(row.input_ids), *some.shape[2:])))
                    for one, row in zip(apart, rows, strict=True)
                ],
                dim=1,
            )
        return inputs | self._pixels(rows)

    def _token_inputs(
        self, rows: Sequence[Mapping[str, Tensor]], width: int, *, is_left: bool = False
    ) -> dict[str, Tensor]:
        """Pad what the tokenizer or the processor gave for each token, as tokens are padded."""
        accepted = [{n: v for n, v in row.items() if n in self.forward_args} for row in rows]
        return pad_token_inputs(accepted, width, is_left=is_left)

    def _pixels(self, rows: Sequence[EncodedPrompt | EncodedChat]) -> dict[str, Tensor]:
        pixels = [row.pixels for row in rows if row.pixels is not None]
        names = sorted(self.forward_args.intersection(pixels[0].inputs if pixels else ()))
        joined = {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}
        # Llama 4's processor prepares images in bfloat16, whatever the model's dtype is.
        return {
            name: value.to(self._dtype) if value.dtype in _HALF_PRECISION else value
            for name, value in joined.items()
        }

    def _block_mask(self, owners_T: Tensor, kind: str) -> Tensor:
        """Return a block-diagonal causal mask (1, 1, T, T) for a type of layers.

        Args:
            owners_T: Numbers conversations.
            kind: A window counts tokens back, chunks are counted from the first token of each
                conversation.
        """
        assert isinstance(self.packing, PackingMasks), self.packing
        size = self.packing.kinds[kind]
        position_T = torch.arange(len(owners_T))
        distance_TT = position_T[:, None] - position_T[None, :]
        attends_TT = (owners_T[:, None] == owners_T[None, :]) & (distance_TT >= 0)
        if size is not None and kind == CHUNKED:
            begin_T = torch.searchsorted(owners_T, owners_T)
            chunk_T = (position_T - begin_T) // size
            attends_TT &= chunk_T[:, None] == chunk_T[None, :]
        elif size is not None:
            attends_TT &= distance_TT < size
        if self._attention == "sdpa":
            return attends_TT[None, None]
        # Eager attention adds the mask to the attention scores.
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(attends_TT.shape).masked_fill_(~attends_TT, lowest)[None, None]

    def _positions(self, row: EncodedChat) -> Tensor:
        if self._get_rope_index is None:
            return torch.arange(len(row.input_ids))[None]
        if row.pixels is None:
            return torch.arange(len(row.input_ids)).expand(3, 1, -1)
        image_inputs = {n: v for n, v in row.pixels.inputs.items() if n in self._rope_args}
        positions, _ = self._get_rope_index(
            input_ids=torch.tensor([row.input_ids]),
            mm_token_type_ids=torch.tensor([row.token_types]),
            attention_mask=torch.ones((1, len(row.input_ids)), dtype=torch.long),
            **image_inputs,
        )
        on_cpu: Tensor = positions.cpu()
        return on_cpu


def labels_of(row: EncodedChat) -> list[int]:
    """Return a label for each token: its id inside `spans`, `IGNORE_INDEX` everywhere else."""
    labels = [IGNORE_INDEX] * len(row.input_ids)
    for begin, end in row.spans:
        labels[begin:end] = row.input_ids[begin:end]
    return labels


def map_tensors(batch: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Change every tensor of a batch, such as moving it to a device."""
    return {
        name: map_tensors(value, change) if isinstance(value, Mapping) else change(value)
        for name, value in batch.items()
    }
