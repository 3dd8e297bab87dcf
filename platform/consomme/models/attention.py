"""Which layers of a language model mix tokens, and how: what rows of several texts depend on.

Texts share a row under an attention mask of our own. A mask holds back attention and nothing else,
so only families are tried whose every layer is known to be attention that takes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

FULL_ATTENTION = frozenset(
    """
    apertus arcee aria_text cohere cohere2 cwm deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe
    exaone4 flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe glm4v_moe_text glm4v_text
    glm46v_text glm_ocr_text gpt_neox gpt_oss granite granite4_vision_text granitemoe helium
    hunyuan_v1_dense hunyuan_v1_moe hyperclovax jais2 llama minimax_m2 ministral ministral3 mistral
    mistral4 mixtral nanochat nemotron olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2
    qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3 qwen3_moe qwen3_vl_moe_text qwen3_vl_text seed_oss
    smollm3 stablelm starcoder2
    """.split()
)
"""Language models whose every layer mixes tokens by softmax attention alone, with the mask that
`forward` is given, or with a sliding window. Others may have recurrent or convolution layers, which
a mask does not hold back."""

CHUNKED_ATTENTION = frozenset({"llama4_text"})
"""As `FULL_ATTENTION`, but some layers attend within chunks, counted from the first token."""


ANY_LENGTH = 1 << 30
"""Positions of a model that has no limit."""


def max_positions(config: Any) -> int:
    """Return the number of positions that a model has."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or ANY_LENGTH


def windows(text: Any) -> list[int]:
    """Return the sliding windows and chunks of attention that a text config declares, in tokens."""
    types = set(getattr(text, "layer_types", None) or [SLIDING, CHUNKED])
    return sorted(size for kind, size in _declared(text).items() if size and kind in types)


def _declared(text: Any) -> dict[str, int | None]:
    return {
        SLIDING: getattr(text, "sliding_window", None),
        CHUNKED: getattr(text, "attention_chunk_size", None),
    }


def num_selected(text: Any) -> int | None:
    """Return how many tokens a layer attends to at most; None if it attends to all.

    Layers that select tokens do so by scores that may be equal, or nearly so, and then by what else
    is in the batch: rows of more tokens come out differently.
    """
    num_blocks = getattr(text, "index_topk_blocks", None)
    found = [
        getattr(text, "index_topk", None),
        getattr(text, "indexer_budget", None),
        num_blocks * text.index_block_size if num_blocks else None,
    ]
    return min((size for size in found if size), default=None)


def longest_alike(text: Any) -> int | None:
    """Return the length in tokens beyond which a row changes the positions of its whole batch.

    Some rotary embeddings take other frequencies if any position of a batch is beyond the length
    that the model was first trained with. None if no row is that long.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    # One rope, or one for each type of layers.
    every = [one for one in (rope, *rope.values()) if isinstance(one, Mapping)]
    lengths = [
        one.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for one in every
        if one.get("rope_type") in ("longrope", "dynamic")
    ]
    reached = [length for length in lengths if length < text.max_position_embeddings]
    return min(reached, default=None)


def no_mask_reason(model: Any, families: frozenset[str]) -> str:
    """Return why rows with an attention mask of our own are not tried; empty if they are.

    Args:
        model: An open transformers model.
        families: Types of language models whose layers are known.
    """
    text = model.config.get_text_config()
    parameters = inspect.signature(model.forward).parameters
    if text._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {text._attn_implementation}, which takes no mask of our own"
    if text.model_type not in families or "position_ids" not in parameters:
        return f"not every layer of {text.model_type} is known to be attention with our mask"
    if "token_type_ids" in parameters or getattr(text, "use_bidirectional_attention", None):
        return "it attends in both directions within images or prompts"
    known = {FULL, SLIDING, *([CHUNKED] if text.model_type in CHUNKED_ATTENTION else [])}
    other = set(getattr(text, "layer_types", None) or []) - known
    if other:
        return f"it has layers of type {', '.join(sorted(other))}"
    return ""


@dataclass(frozen=True, kw_only=True)
class PackingMasks:
    """Masks under which independent conversations share a row."""

    kinds: Mapping[str, int | None] = field(default_factory=lambda: {FULL: None})
    """Type of layers -> size of their window or chunk."""

    is_by_type: bool = False
    """Whether `forward` takes a mask for each type of layers, or one for all."""

    max_tokens: int | None = None
    """Longest conversation that shares a row; None for any."""

    max_row: int | None = None
    """Longest row of several conversations; None for any."""


def packing_masks(model: Any) -> PackingMasks | str:
    """Return the masks of rows of several conversations, or why this model has none."""
    reason = no_mask_reason(model, FULL_ATTENTION | CHUNKED_ATTENTION)
    if reason:
        return reason
    text = model.config.get_text_config()
    declared = _declared(text)
    types = set(getattr(text, "layer_types", None) or [])
    if not types:
        # Without types of layers, a window is that of every layer.
        types = {SLIDING} if declared[SLIDING] else {FULL}
    kinds: dict[str, int | None] = {kind: declared.get(kind) for kind in sorted(types)}
    alike = longest_alike(text)
    max_row = text.floor_scale - 1 if getattr(text, "attn_temperature_tuning", None) else None
    if len(set(kinds.values())) == 1:
        return PackingMasks(kinds=kinds, max_tokens=alike, max_row=max_row)
    if _takes_mask_by_type(model):
        # Not every family has layers of each type; what reads a mask finds that of full attention.
        return PackingMasks(
            kinds={FULL: None} | kinds, is_by_type=True, max_tokens=alike, max_row=max_row
        )
    # Within the smallest window, every layer has the same mask.
    smallest = min(size for size in kinds.values() if size)
    limit = smallest if alike is None else min(smallest, alike)
    return PackingMasks(max_tokens=limit, max_row=max_row)


def _takes_mask_by_type(model: Any) -> bool:
    """Whether the language model's `forward` takes a dict of masks by type of layers."""
    text_type = model.config.get_text_config().model_type
    return any(
        getattr(getattr(module, "config", None), "model_type", None) == text_type
        and "attention_mask, dict)" in inspect.getsource(type(module).forward)
        for module in model.modules()
    )
