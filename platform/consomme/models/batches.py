"""Put conversations side by side as a model takes them.

One decision is made here: what a model is given is what its own `forward` has names for, so one
function serves every family.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from consomme.models.dialogue import Asked, Spoken, pad_and_join

# Shapes: B conversations, T token positions.

IGNORE_INDEX = -100
"""Label of a token that no loss is taken on."""


class Batcher:
    """Makes the inputs of one model."""

    def __init__(self, model: Any, pad_id: int) -> None:
        """Look at what the model takes.

        Args:
            model: An open transformers model.
            pad_id: Stands where nothing is.
        """
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        self.pad_id = pad_id

    def join(
        self, rows: Sequence[Asked | Spoken], *, pad: Literal["left", "right"] = "right"
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
        pixels = [row.pixels for row in rows if row.pixels is not None]
        for name in sorted(self.takes.intersection(pixels[0].inputs if pixels else ())):
            inputs[name] = pad_and_join([one.inputs[name] for one in pixels])
        spoken = [row for row in rows if isinstance(row, Spoken)]
        if len(spoken) == len(rows):
            inputs["labels"] = padded([labels_of(row) for row in spoken], IGNORE_INDEX)
        return inputs


def labels_of(row: Spoken) -> list[int]:
    """The spoken tokens at their places, `IGNORE_INDEX` everywhere else."""
    labels = [IGNORE_INDEX] * len(row.input_ids)
    for begin, end in row.spans:
        labels[begin:end] = row.input_ids[begin:end]
    return labels
