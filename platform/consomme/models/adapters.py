"""Read LoRA adapters in PEFT's format, and add them to a model's weights.

One decision is made here: an adapter is added as a whole or not at all. What a plain product of two
matrices does not say (magnitudes, biases, modules saved whole) is refused, and so is a tensor that
has no place in the model; left out in silence it would be another model that writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.weights import stored_key

# Shapes: R rank, I inputs, O outputs of a matrix.

_PREFIX = "base_model.model."
_KINDS = (".lora_A.weight", ".lora_B.weight")

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}
"""What an adapter's config may say, where more than one thing could be said."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA: for each of some matrices, two thin ones whose product is added to it."""

    folder: Path
    scale: float
    """Factor on every product."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """By the name of the module: A (R, I) and B (O, R)."""

    @property
    def modules(self) -> list[str]:
        """Names of the modules, sorted."""
        return sorted(self.pairs)

    @property
    def rank(self) -> int:
        """The largest R."""
        return max(first.shape[0] for first, _ in self.pairs.values())


def open_adapter(folder: str | Path) -> Adapter:
    """Read an adapter.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: It is not whole, or does more than add products to matrices.
    """
    folder = Path(folder)
    config_path, weights_path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(
                f"no adapter at {folder}: {path.name} is not there; expected a folder in PEFT's"
                " format"
            )
    try:
        config = json.loads(config_path.read_text())
        with safe_open(weights_path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the adapter at {folder}: {error}") from error
    for key, allowed in _PLAIN.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{config_path}: {key} is {config[key]!r}; consomme adds plain LoRAs only,"
                f" expected {allowed[0]!r}"
            )
    pairs = _pairs(tensors, folder)
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(folder=folder, scale=scale, pairs=pairs)


def merge_adapter(model: Any, adapter: Adapter) -> None:
    """Add an adapter to the weights of an open model, in place: W + scale B A.

    The sum is made in float32 and cast once.

    Args:
        model: An open transformers model.
        adapter: Modules may have the names that they have in the model or in its stored files.

    Raises:
        CheckpointError: The first tensor that has no place in the model; nothing was changed then.
    """
    parameters = dict(model.named_parameters())
    names = {stored_key(name): name for name in parameters} | {name: name for name in parameters}
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for module in adapter.modules:
        first_RI, second_OR = adapter.pairs[module]
        weight = parameters.get(names.get(f"{module}.weight", ""))
        shape = (second_OR.shape[0], first_RI.shape[1])
        if weight is None or tuple(weight.shape) != shape:
            what = "is not there" if weight is None else f"has the shape {tuple(weight.shape)}"
            raise CheckpointError(
                f"{adapter.folder}: {_PREFIX}{module}{_KINDS[0]} does not fit the model: its"
                f" {module}.weight {what}, the adapter is for {shape}; it was trained on another"
                " model"
            )
        found.append((weight, first_RI, second_OR))
    with torch.no_grad():
        for weight, first_RI, second_OR in found:
            product = second_OR.float() @ first_RI.float() * adapter.scale
            weight.copy_(weight.float() + product.to(weight.device))


def _pairs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Put each module's two matrices together."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(tensors):
        kind = next((kind for kind in _KINDS if name.endswith(kind)), None)
        if kind is None or not name.startswith(_PREFIX):
            raise CheckpointError(
                f"{folder}: the tensor {name} is none of a plain LoRA's; expected names such as"
                f" {_PREFIX}model.layers.0.self_attn.q_proj{_KINDS[0]}"
            )
        base_name = name.removesuffix(kind)
        both = [tensors.get(base_name + kind) for kind in _KINDS]
        if both[0] is None or both[1] is None or both[0].shape[0] != both[1].shape[1]:
            raise CheckpointError(
                f"{folder}: {name} has no partner that fits; expected {_KINDS[0]} of (rank,"
                f" inputs) and {_KINDS[1]} of (outputs, rank)"
            )
        pairs[base_name.removeprefix(_PREFIX)] = (both[0], both[1])
    if not pairs:
        raise CheckpointError(f"{folder}: the adapter is empty")
    return pairs
