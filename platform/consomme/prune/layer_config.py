"""Rewrite the config of a model for fewer layers.

A config describes layers in several ways: their number, a list with an entry per layer, lists of
layers, and counts from the bottom or from the top. Each of these is rewritten by its name. A list
as long as the model that is none of them stops it: nothing is guessed. Patterns that a config
gives by a period only cannot be kept if a layer is missing; `consomme.prune.structure` finds that
out, because it compares the layers that the new config makes with the old ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError

PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "block_types",
    "block_configs",
    "no_rope_layers",
    "activation_sparsity_pattern",
    "intermediate_size",
    "layer_rope_theta",
    "indexer_types",
    "swiglu_limits",
    "swiglu_limits_shared",
    "attention_layers",
    "num_attention_heads_per_layer",
)
"""Lists with an entry for each layer; those of another length are something else."""

LAYER_INDICES = (
    "cross_attention_layers",
    "moe_layers",
    "mlp_only_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "ple_layer_ids",
    "hybrid_layer_ids",
)
"""Lists of layers."""

INSERTED_BEFORE = ("deepstack_layer_map", "spatial_target_layers")
"""Lists, at the top of a config, of layers before which features of images are added; of pairs, the
second number is the layer."""

FROM_BOTTOM = ("max_window_layers", "first_k_dense_replace", "num_dense_layers")
"""Numbers of the lowest layers that are of one kind."""

FROM_TOP = ("num_kv_shared_layers",)
"""Numbers of the highest layers that are of one kind."""

FURTHER_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""Numbers of layers beyond those of the model, which transformers does not load."""

NOT_PER_LAYER = (
    "mrope_section",
    "time_step_limit",
    "mlp_multipliers",
    "ssm_multipliers",
    "moe_intermediate_size",
    "moe_num_experts",
    "eos_token_id",
    "architectures",
    "long_factor",
    "short_factor",
    "attention_types",
)
"""Lists that are about something else, whatever their length."""


def pruned_config(folder: str | Path, config: Any, removed: Sequence[int]) -> dict[str, Any]:
    """Return the content of `config.json` without some layers.

    Args:
        folder: Of the model.
        config: The folder's config as transformers opens it.
        removed: Layers, 0-based.

    Raises:
        CheckpointError: The config has something about layers that is not known here.
    """
    content: dict[str, Any] = json.loads(Path(folder, "config.json").read_text())
    text = config.get_text_config()
    depth = str(text.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    num_layers = int(text.num_hidden_layers)
    kept = [index for index in range(num_layers) if index not in set(removed)]
    _check_sources(text, kept, num_layers)
    changes = dict(_changes(text.to_dict(), kept, num_layers, str(text.model_type)))
    changes[depth] = len(kept)
    path = text_config_path(config)
    place = content
    for number, step in enumerate(path):
        is_flat = step not in place and depth in place
        if is_flat:
            # Configs of before a family had a sub config describe the text at the top.
            break
        if not isinstance(place.get(step), dict):
            place[step] = {}
            if number == len(path) - 1:
                place[step]["model_type"] = text.model_type
        place = place[step]
    place |= {key: one for key, one in changes.items() if key in place or _says(one, key, depth)}
    for key in INSERTED_BEFORE:
        if isinstance(value := getattr(config, key, None), list | tuple):
            content[key] = [_moved_before(one, kept) for one in value]
    if place is not content and content.get(depth) == num_layers:
        # Some configs say it twice.
        content |= {key: one for key, one in changes.items() if key in content}
    return content


def _check_sources(text: Any, kept: Sequence[int], num_layers: int) -> None:
    """Check that layers which use keys and values of another layer keep that one.

    The highest layers use those of the highest layer below them all that has their type of
    attention, as in Gemma 3n and Gemma 4.

    Raises:
        CheckpointError: One would lose it.
    """
    num_shared = getattr(text, "num_kv_shared_layers", None) or 0
    types = getattr(text, "layer_types", None) or ["attention"] * num_layers
    sources = {types[index]: index for index in range(num_layers - num_shared)}
    for index in kept:
        source = sources.get(types[index])
        if index >= num_layers - num_shared and source is not None and source not in kept:
            raise CheckpointError(
                f"layer {index} uses the keys and values of layer {source}, which is removed;"
                f" remove both, or protect layer {source}"
            )


def _moved_before(one: Any, kept: Sequence[int]) -> Any:
    """Return a layer, or a pair with one, by the kept layers that are below it."""
    if isinstance(one, list | tuple):
        return [*one[:-1], _moved_before(one[-1], kept)]
    return sum(index < one for index in kept)


def _says(value: Any, key: str, depth: str) -> bool:
    """Whether a key that the stored config leaves out has to be written down."""
    if key == depth:
        return True
    if isinstance(value, list):
        return key in LAYER_INDICES or any(one != value[0] for one in value)
    return False


def _changes(
    text: Mapping[str, Any], kept: Sequence[int], num_layers: int, model_type: str
) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a text config that other layers change."""
    for key, value in text.items():
        is_list = isinstance(value, list | tuple)
        if key in PER_LAYER and is_list and len(value) == num_layers:
            yield key, [value[index] for index in kept]
        elif key in LAYER_INDICES and is_list:
            yield key, [kept.index(index) for index in value if index in kept]
        elif key == "attention_types" and value:
            kinds = [kind for types, times in value for _ in range(times) for kind in types]
            yield key, [[[kinds[index]], 1] for index in kept]
        elif key in FROM_BOTTOM and isinstance(value, int):
            yield key, value - sum(index < value for index in _missing(kept, num_layers))
        elif key in FROM_TOP and isinstance(value, int):
            first = num_layers - value
            yield key, sum(index >= first for index in kept)
        elif key in FURTHER_LAYERS and isinstance(value, int):
            yield key, 0
        elif is_list and len(value) == num_layers and key not in NOT_PER_LAYER:
            raise CheckpointError(
                f"config.json: {key} of {model_type} has {num_layers} entries, as many as the model"
                " has layers, and it is not known whether it is about layers; expected one of"
                f" {', '.join(PER_LAYER)}. Layers of this model cannot be removed"
            )


def _missing(kept: Sequence[int], num_layers: int) -> Iterator[int]:
    there = set(kept)
    yield from (index for index in range(num_layers) if index not in there)


def text_config_path(config: Any) -> tuple[str, ...]:
    """Return the keys that lead from a config to that of its language model.

    Raises:
        CheckpointError: It is not inside the config.
    """
    text = config.get_text_config()
    found = _path_to(config, text)
    if found is None:
        raise CheckpointError(
            f"cannot find the config of the language model in that of {config.model_type}; layers"
            " of this model cannot be removed"
        )
    return found


def _path_to(config: Any, wanted: Any) -> tuple[str, ...] | None:
    if config is wanted:
        return ()
    for key in getattr(config, "sub_configs", {}):
        one = getattr(config, key, None)
        if one is not None and not isinstance(one, dict):
            rest = _path_to(one, wanted)
            if rest is not None:
                return (key, *rest)
    return None


def fixed_layers(config: Any) -> dict[int, str]:
    """Return the layers of a family that cannot be removed, and why, as far as the config says.

    Args:
        config: As transformers opens it.
    """
    vision = getattr(config, "vision_config", None)
    features = getattr(vision, "deepstack_visual_indexes", None) or ()
    return {
        layer: "features of images are added to what it returns" for layer in range(len(features))
    }
