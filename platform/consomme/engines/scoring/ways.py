"""Which ways of scoring a model are tried, by its config: an allow-list, fastest first."""

from __future__ import annotations

import inspect
from typing import Any

from consomme.engines.scoring.prefix_tree import PrefixLimits

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

FULL_ATTENTION = frozenset(
    """
    apertus arcee aria_text cohere cohere2 cwm deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe
    exaone4 flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe glm4v_moe_text glm4v_text
    glm46v_text glm_ocr_text gpt_neox gpt_oss granite granitemoe helium hunyuan_v1_dense
    hunyuan_v1_moe hyperclovax jais2 llama minimax_m2 ministral ministral3 mistral mistral4 mixtral
    nanochat nemotron olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2 qwen2_5_vl_text
    qwen2_moe qwen2_vl_text qwen3 qwen3_moe qwen3_vl_moe_text qwen3_vl_text seed_oss smollm3
    stablelm starcoder2
    """.split()
)
"""Language models whose every layer mixes tokens by softmax attention alone, with the mask that
`forward` is given, or with a sliding window. Others may have recurrent or convolution layers, which
a mask does not hold back, so they share no prefixes."""

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def windows(text: Any) -> list[int]:
    """Return the sliding windows and chunks of attention that a text config declares, in tokens."""
    types = set(getattr(text, "layer_types", None) or ["sliding_attention", "chunked_attention"])
    declared = {
        "sliding_attention": getattr(text, "sliding_window", None),
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    return sorted(size for kind, size in declared.items() if size and kind in types)


def prefix_limits(model: Any) -> PrefixLimits | str:
    """Return the limits of rows that share prefixes, or why this model has none."""
    text = model.config.get_text_config()
    parameters = inspect.signature(model.forward).parameters
    if text._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {text._attn_implementation}, which takes no mask of our own"
    if text.model_type not in FULL_ATTENTION or "position_ids" not in parameters:
        return f"not every layer of {text.model_type} is known to be attention with our mask"
    if "token_type_ids" in parameters or getattr(text, "use_bidirectional_attention", None):
        return "it attends in both directions within images or prompts"
    other = set(getattr(text, "layer_types", None) or []) - _LAYER_TYPES
    if other:
        return f"it has layers of type {', '.join(sorted(other))}"
    # A token costs about 24 W² in dense layers and 4 T W in attention, so attention over a row
    # of T = W tokens adds a sixth. Within the smallest window, every layer has the same mask.
    return PrefixLimits(
        max_tokens=max(256, text.hidden_size), window=min(windows(text), default=None)
    )
