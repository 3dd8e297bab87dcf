"""Read LoRA adapters in PEFT's format, and merge them into a model's weights.

An adapter is merged as a whole or not at all. Anything but a product of two matrices (magnitudes,
biases, modules saved whole) is refused, and so is a tensor that has no place in the model: left out
silently, it would change which model generates.
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
from consomme.models.weights import open_keys

# Shapes: R rank, I input features, O output features of a matrix.

_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")

_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}
"""Supported values of keys in an adapter's config; the first one is the default."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA: low-rank products that are added to some matrices of a model."""

    folder: Path
    scale: float
    """Factor on every product B A."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """Module name -> A (R, I) and B (O, R)."""

    @property
    def modules(self) -> list[str]:
        """Names of the modules, sorted."""
        return sorted(self.pairs)

    @property
    def rank(self) -> int:
        """The largest rank R."""
        return max(a_RI.shape[0] for a_RI, _ in self.pairs.values())


def open_adapter(folder: str | Path) -> Adapter:
    """Read an adapter.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: It is incomplete, or does more than add products to matrices.
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
    for key, allowed in _SUPPORTED.items():
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
    """Merge an adapter into the weights of an open model, in place: W + scale B A.

    The sum is made in float32 and cast once.

    Args:
        model: An open transformers model.
        adapter: Module names are those of the open model or of its stored files.

    Raises:
        CheckpointError: A tensor has no place in the model; no weight was changed.
    """
    parameters = dict(model.named_parameters())
    names = open_keys(model, [f"{module}.weight" for module in adapter.modules])
    updates: list[tuple[Tensor, Tensor, Tensor]] = []
    for module in adapter.modules:
        a_RI, b_OR = adapter.pairs[module]
        weight = parameters.get(names.get(f"{module}.weight", ""))
        shape = (b_OR.shape[0], a_RI.shape[1])
        if weight is None or tuple(weight.shape) != shape:
            problem = "is missing" if weight is None else f"has the shape {tuple(weight.shape)}"
            raise CheckpointError(
                f"{adapter.folder}: {_PREFIX}{module}{_SUFFIXES[0]} does not fit the model: its"
                f" {module}.weight {problem}, the adapter is for {shape}; it was trained on another"
                " model"
            )
        updates.append((weight, a_RI, b_OR))
    with torch.no_grad():
        for weight, a_RI, b_OR in updates:
            product = b_OR.float() @ a_RI.float() * adapter.scale
            weight.copy_(weight.float() + product.to(weight.device))


def _pairs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Group the tensors into each module's two matrices."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(tensors):
        suffix = next((one for one in _SUFFIXES if name.endswith(one)), None)
        if suffix is None or not name.startswith(_PREFIX):
            raise CheckpointError(
                f"{folder}: the tensor {name} is none of a plain LoRA's; expected names such as"
                f" {_PREFIX}model.layers.0.self_attn.q_proj{_SUFFIXES[0]}"
            )
        base_name = name.removesuffix(suffix)
        a_RI, b_OR = (tensors.get(base_name + one) for one in _SUFFIXES)
        if a_RI is None or b_OR is None or a_RI.shape[0] != b_OR.shape[1]:
            raise CheckpointError(
                f"{folder}: {name} has no partner that fits; expected {_SUFFIXES[0]} of (rank,"
                f" inputs) and {_SUFFIXES[1]} of (outputs, rank)"
            )
        pairs[base_name.removeprefix(_PREFIX)] = (a_RI, b_OR)
    if not pairs:
        raise CheckpointError(f"{folder}: the adapter is empty")
    return pairs
