"""Noise on the embeddings in training (NEFTune, arXiv 2310.05914)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from consomme.models.attention import FULL


def add_noise(model: Any, alpha: float) -> None:
    """Add uniform noise to the output of the input embeddings, in training mode only.

    The noise is bounded by `alpha / sqrt(L * D)`, where L is the number of tokens of a token's own
    conversation, without padding and without other conversations in its row, and D is the width.

    Args:
        model: Takes `input_ids` (B, T) and an attention mask as keywords: (B, T) of ones and zeros,
            or (1, 1, T, T), which says which token attends to which, or a dict of such masks.
        alpha: 5 to 15 are usual.
    """
    lengths: list[Tensor] = []

    def read_lengths(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        lengths[:] = [_lengths(inputs)] if model.training else []

    def add_to_output(_: Any, __: Any, output: Tensor) -> Tensor:
        # Frozen embeddings are in eval mode while the model is trained.
        if not lengths:
            return output
        bound_BT1 = alpha / (lengths[0].to(output) * output.shape[-1]).sqrt()[..., None]
        return output + (2 * torch.rand_like(output) - 1) * bound_BT1

    model.register_forward_pre_hook(read_lengths, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(add_to_output)


def _lengths(inputs: dict[str, Any]) -> Tensor:
    """Return the number of tokens of each token's conversation: (B, T)."""
    mask = inputs["attention_mask"]
    if isinstance(mask, dict):
        # By type of layers.
        mask = mask[FULL]
    if mask.dim() == 2:
        counts_BT: Tensor = mask.sum(dim=1, keepdim=True).expand_as(mask)
        return counts_BT
    attends_TT = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    # In any window, a token attends to the one before it, unless that ends a conversation.
    goes_on_T = attends_TT.diagonal(-1)
    owner_T = torch.cat([goes_on_T.new_zeros(1, dtype=torch.long), (~goes_on_T).cumsum(0)])
    return owner_T.bincount()[owner_T][None]
