"""Noise on the embeddings of a model that is being trained (NEFTune, arXiv 2310.05914)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_noise(model: Any, alpha: float) -> None:
    """Add uniform noise to what the input embeddings give, in training mode only.

    Its bound is `alpha / sqrt(L * D)`, for L tokens of the conversation that a token stands in,
    padding and neighbours in its row not counted, and width D.

    Args:
        model: Takes `input_ids` (B, T) and an attention mask, (B, T) of ones and zeros or
            (1, 1, T, T), of which token sees which, as keywords.
        alpha: 5 to 15 are usual.
    """
    lengths: list[Tensor] = []

    def look(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        lengths[:] = [_lengths(inputs)]

    def disturb(module: Any, _: Any, output: Tensor) -> Tensor:
        if not module.training or not lengths:
            return output
        bound_BT1 = alpha / (lengths[0].to(output) * output.shape[-1]).sqrt()[..., None]
        return output + (2 * torch.rand_like(output) - 1) * bound_BT1

    model.register_forward_pre_hook(look, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(disturb)


def _lengths(inputs: dict[str, Any]) -> Tensor:
    """Tokens of the conversation that each token stands in: (B, T)."""
    mask = inputs["attention_mask"]
    if mask.dim() == 2:
        counts_BT: Tensor = mask.sum(dim=1, keepdim=True).expand_as(mask)
        return counts_BT
    sees_TT = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    # Those before a token, itself included, and those after it, itself included.
    both_T: Tensor = sees_TT.sum(dim=1) + sees_TT.sum(dim=0) - 1
    return both_T[None]
