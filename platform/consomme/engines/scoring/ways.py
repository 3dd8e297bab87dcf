"""Which ways of scoring a model are tried, by its config: an allow-list, fastest first."""

from __future__ import annotations

from typing import Any

from consomme.engines.scoring.prefix_tree import PrefixLimits
from consomme.models.attention import FULL_ATTENTION, no_mask_reason, windows

SHARED = "shared prefixes"
"""Conversations with a common prefix are one row, under an attention mask of our own."""

PADDED = "padded batches"
"""A row holds one conversation; rows are padded to a batch, and each image is encoded once."""

SINGLE = "one row at a time"
"""The plain forward pass of each conversation, its image included."""

LOST = {
    SHARED: "captions of one image, and texts with one prompt, do not share a row",
    PADDED: "rows are not batched, and an image is encoded again for each of its captions",
}
"""What is lost if a way cannot be used."""


def prefix_limits(model: Any) -> PrefixLimits | str:
    """Return the limits of rows that share prefixes, or why this model has none."""
    reason = no_mask_reason(model, FULL_ATTENTION)
    if reason:
        return reason
    text = model.config.get_text_config()
    # A token costs about 24 W² in dense layers and 4 T W in attention, so attention over a row
    # of T = W tokens adds a sixth. Within the smallest window, every layer has the same mask.
    return PrefixLimits(
        max_tokens=max(256, text.hidden_size), window=min(windows(text), default=None)
    )
