"""Tiny models of two families that vLLM runs on a CPU, where heads have 32 numbers at least."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from consomme.models.debug import make_debug_vlm
from tests.support.families import qwen2_vl, write

_WIDE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}


def write_vllm_family(name: str, folder: Path) -> Path:
    """Write one of `VLLM_FAMILIES`, with random weights."""
    if name == "llava":
        return make_debug_vlm(folder, num_layers=4)
    return write(partial(qwen2_vl, **_WIDE), folder)


VLLM_FAMILIES = ("llava", "qwen2_vl")
"""One whose images all have the same number of tokens, and one with positions by image size."""
