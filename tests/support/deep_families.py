"""The families of the table with twice the layers, so that some can be taken away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.support.families import hf
from tests.support.family_table import TABLE

PER_LAYER = (
    "layer_types", "mlp_layer_types", "layers_block_type", "block_types", "no_rope_layers",
    "activation_sparsity_pattern", "indexer_types", "swiglu_limits", "swiglu_limits_shared",
)  # fmt: skip
INDICES = ("cross_attention_layers", "moe_layers", "mlp_only_layers", "attn_layer_indices")


def twice(value: Any, num_layers: int, depth_key: str) -> Any:
    """A text config of twice the layers."""
    changed = dict(value)
    changed[depth_key] = 2 * num_layers
    for key, one in value.items():
        if isinstance(one, list) and (
            key in PER_LAYER or (key == "intermediate_size" and len(one) == num_layers)
        ):
            changed[key] = (2 * one)[: 2 * num_layers]
        elif isinstance(one, list) and key in INDICES:
            changed[key] = [*one, *(index + num_layers for index in one)]
        elif key == "attention_types":
            changed[key] = [[types, 2 * times] for types, times in one]
    return changed


def write_deep(name: str, folder: Path) -> Path:
    """Write a tiny model of a family with twice the layers that the table's has.

    Args:
        name: As in the table; `_shared` after it lets the upper half use lower keys and values.
        folder: Created.
    """
    torch.manual_seed(0)
    build = TABLE[name.removesuffix("_shared")]
    model, processor = build()
    model.config.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    text = model.config.get_text_config()
    key = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    place = content if text is model.config else content["text_config"]
    place |= twice(place, text.num_hidden_layers, key)
    # Made of the types.
    place.pop("attention_layers", None)
    if name.endswith("_shared"):
        # The two highest layers take keys and values of lower ones.
        place["num_kv_shared_layers"] = text.num_hidden_layers
    (folder / "config.json").write_text(json.dumps(content))
    config = hf.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    deep = type(model)(config)
    assert deep.config.get_text_config().num_hidden_layers == 2 * text.num_hidden_layers
    with torch.no_grad():
        for parameter in deep.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    deep.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
