"""Gated blocks by which words attend to images between the layers of a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shapes: B rows, T token positions, I images of a row, N tokens of an image, K = I · N, W width.


class GatedCrossAttention(nn.Module):
    """Attention of words to image states and an MLP, both behind gates that begin at zero.

    Words that see no image pass unchanged.
    Source: Flamingo (arXiv 2204.14198).
    """

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn, bias=False)
        self.fc2 = nn.Linear(ffn, width, bias=False)
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_BTW: Tensor, states_BKW: Tensor, sees_BTK: Tensor) -> Tensor:
        """Return the words after they looked at images.

        Args:
            hidden_BTW: Words before a layer.
            states_BKW: Tokens of all images of a row.
            sees_BTK: Which word sees which of them, bool.
        """
        q, k, v = (
            layer(some).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, some in (
                (self.q_proj, self.norm(hidden_BTW)),
                (self.k_proj, states_BKW),
                (self.v_proj, states_BKW),
            )
        )
        sees_any_BT1 = sees_BTK.any(dim=-1, keepdim=True)
        # A word that may attend to nothing would be NaN; what it attends to instead is left out.
        mask_BTK = sees_BTK | ~sees_any_BT1
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTK[:, None])
        looked = self.o_proj(attended.transpose(1, 2).flatten(2)) * self.attention_gate.tanh()
        hidden_BTW = hidden_BTW + looked.masked_fill(~sees_any_BT1, 0)
        thought = self.fc2(functional.gelu(self.fc1(self.mlp_norm(hidden_BTW))))
        thought = thought * self.mlp_gate.tanh()
        done_BTW: Tensor = hidden_BTW + thought.masked_fill(~sees_any_BT1, 0)
        return done_BTW


def gather_images(features_MNW: Tensor, is_image_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the images of a batch by rows.

    Args:
        features_MNW: Tokens of all images, in the order of their marks in the rows.
        is_image_BT: Where the marks are.

    Returns:
        states_BKW: Tokens of the images of each row, zeros where it has fewer than others.
        is_real_BI: Which images a row has.
        place_BI: Where the mark of each image is; 0 for those that it does not have.
    """
    counts_B = is_image_BT.sum(dim=1)
    most = int(counts_B.max())
    rows, width = len(counts_B), features_MNW.shape[1:]
    is_real_BI = torch.arange(most, device=counts_B.device) < counts_B[:, None]
    states = features_MNW.new_zeros((rows, most, *width))
    states = states.masked_scatter(
        is_real_BI[..., None, None].expand_as(states), features_MNW.to(states.dtype)
    )
    place_BI = torch.zeros_like(is_real_BI, dtype=torch.long)
    place_BI[is_real_BI] = is_image_BT.nonzero()[:, 1]
    return states.flatten(1, 2), is_real_BI, place_BI


def seen_images(
    is_real_BI: Tensor, place_BI: Tensor, attention_mask: Tensor | None, size: int
) -> Tensor:
    """Return which word sees which image: those whose mark stands before it.

    Args:
        is_real_BI: From `gather_images`.
        place_BI: From there too.
        attention_mask: (B, 1, T, T) says which word attends to which, where several conversations
            share a row; then a word sees the images whose marks it attends to. Else any other.
        size: Number of words T.

    Returns:
        (B, T, I), bool.
    """
    if attention_mask is None or attention_mask.ndim < 4:
        words_T = torch.arange(size, device=place_BI.device)
        return is_real_BI[:, None] & (place_BI[:, None] <= words_T[None, :, None])
    mask_BTT = attention_mask[:, 0].expand(len(place_BI), -1, -1)
    allowed_BTT = mask_BTT if mask_BTT.dtype == torch.bool else mask_BTT == 0
    index = place_BI[:, None].expand(-1, allowed_BTT.shape[1], -1)
    return is_real_BI[:, None] & allowed_BTT.gather(2, index)
