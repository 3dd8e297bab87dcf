"""Add LoRA adapters to chosen matrices of a model, merge them, and save them.

The caller names the matrices exactly and PEFT does the rest. Nothing is matched by pattern, so
nothing is matched by accident, or missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from consomme.base.errors import CheckpointError
from consomme.models.imports import import_peft

_PREFIX = "base_model.model."
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class LoraShape:
    """Rank, scale and kind of an adapter."""

    rank: int
    alpha: int
    """The product is scaled by `alpha / rank`."""

    dropout: float = 0.0
    has_magnitude: bool = False
    """DoRA: direction and magnitude of the sum are learned separately (arXiv 2402.09353)."""


def add_lora(model: nn.Module, modules: Sequence[str], shape: LoraShape, name: str) -> list[str]:
    """Add adapters to linear layers, in place; their products are zero at first.

    Args:
        model: Names of its parameters change: `x.weight` becomes `x.base_layer.weight`.
        modules: Names of `nn.Linear` modules.
        shape: The same for all of them.
        name: Of the adapter; unique for each call.

    Returns:
        Names of the parameters that were added.

    Raises:
        CheckpointError: A module is not linear.
    """
    for path in modules:
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise CheckpointError(
                f"{path} is a {type(module).__name__}; expected nn.Linear for a LoRA adapter"
            )
    existing = {id(parameter) for parameter in model.parameters()}
    peft = import_peft()
    config = peft.LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        use_dora=shape.has_magnitude,
        target_modules=list(modules),
    )
    requires_grad = {id(p): p.requires_grad for p in model.parameters()}
    peft.inject_adapter_in_model(config, model, adapter_name=name)
    # PEFT keeps one list of adapters per model, with one active. Here each matrix has its own.
    del model.peft_config
    for _, layer in _lora_layers(model):
        layer.set_adapter(list(layer.lora_A))
    for parameter in model.parameters():
        # PEFT freezes the whole model; the caller decides what is frozen.
        parameter.requires_grad_(requires_grad.get(id(parameter), True))
    return [key for key, p in model.named_parameters() if id(p) not in existing]


def merge_lora(model: nn.Module) -> nn.Module:
    """Merge all adapters into their matrices and remove them; the old names are restored."""
    for path, layer in list(_lora_layers(model)):
        layer.merge(safe_merge=True)
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


def save_adapter(
    model: nn.Module, folder: str | Path, base: str, revision: str | None = None
) -> Path:
    """Save a model's adapters without the model, in PEFT's format.

    Args:
        model: With adapters of one shape.
        folder: Destination of `adapter_config.json` and `adapter_model.safetensors`.
        base: Absolute path or hub id of the model without adapters; PEFT opens it.
        revision: Its commit on the hub.

    Raises:
        CheckpointError: There are no adapters, or several shapes, which most readers refuse.
    """
    tensors: dict[str, Tensor] = {}
    shapes, modules = set(), []
    for path, layer in _lora_layers(model):
        (name,) = layer.active_adapters
        shapes.add((layer.r[name], layer.lora_alpha[name], name in layer.lora_variant))
        modules.append(path)
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.lora_A[name].weight
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = layer.lora_B[name].weight
        if name in layer.lora_variant:
            magnitude = layer.lora_magnitude_vector[name].weight
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = magnitude
    if len(shapes) != 1:
        raise CheckpointError(
            "an adapter is saved separately only if all its matrices have one shape (rank, alpha,"
            f" DoRA), found {len(shapes)} shapes; give all parts with lora the same, or merge them"
        )
    ((rank, alpha, has_magnitude),) = shapes
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / _WEIGHTS)
    config: dict[str, Any] = (
        import_peft()
        .LoraConfig(
            r=rank,
            lora_alpha=alpha,
            use_dora=has_magnitude,
            target_modules=sorted(modules),
            base_model_name_or_path=base,
            revision=revision,
            inference_mode=True,
        )
        .to_dict()
    )
    config["target_modules"] = sorted(modules)
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    return folder


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    layer_class = import_peft().tuners.lora.LoraLayer
    for path, module in model.named_modules():
        if isinstance(module, layer_class):
            yield path, module
