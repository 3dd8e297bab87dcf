"""Put low-rank adapters beside chosen matrices of a model, and take them off again.

One decision is made here: which matrices get one is decided by exact names, from outside; PEFT does
the rest. Nothing is matched by pattern, so nothing can be matched by accident, or not at all.
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
    """What an adapter looks like."""

    rank: int
    alpha: int
    """The product is added times `alpha / rank`."""

    dropout: float = 0.0
    has_magnitude: bool = False
    """DoRA: directions and magnitudes of the sum are learned apart (arXiv 2402.09353)."""


def add_lora(model: nn.Module, modules: Sequence[str], shape: LoraShape, name: str) -> list[str]:
    """Put adapters beside some linear maps, in place; they add nothing yet.

    Args:
        model: Any; the names of its parameters change: `x.weight` becomes `x.base_layer.weight`.
        modules: Names of `nn.Linear` modules.
        shape: The same for all of them.
        name: Of the adapter; each call needs its own.

    Returns:
        Names of the parameters that were added.

    Raises:
        CheckpointError: A module is no linear map.
    """
    for path in modules:
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise CheckpointError(
                f"{path} is a {type(module).__name__}; expected nn.Linear to put an adapter beside"
            )
    before = {id(parameter) for parameter in model.parameters()}
    peft = import_peft()
    config = peft.LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        use_dora=shape.has_magnitude,
        target_modules=list(modules),
    )
    trained = {id(p): p.requires_grad for p in model.parameters()}
    peft.inject_adapter_in_model(config, model, adapter_name=name)
    # PEFT keeps a list of adapters in the model, of which one is active. Here each matrix has one.
    del model.peft_config
    for _, layer in _adapted(model):
        layer.set_adapter(list(layer.lora_A))
    for parameter in model.parameters():
        # PEFT freezes the whole model; whoever called decides.
        parameter.requires_grad_(trained.get(id(parameter), True))
    return [key for key, p in model.named_parameters() if id(p) not in before]


def merge_lora(model: nn.Module) -> nn.Module:
    """Add all adapters to their matrices and take them off; names are as before then."""
    for path, layer in list(_adapted(model)):
        layer.merge(safe_merge=True)
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


def save_adapter(model: nn.Module, folder: str | Path, base: str) -> Path:
    """Write a model's adapters alone, as PEFT does.

    Args:
        model: With adapters of one shape.
        folder: Where `adapter_config.json` and `adapter_model.safetensors` go.
        base: Where the model without them is, for whoever reads it.

    Raises:
        CheckpointError: There is none, or they have several shapes, which most readers refuse.
    """
    tensors: dict[str, Tensor] = {}
    shapes, modules = set(), []
    for path, layer in _adapted(model):
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
            f"an adapter is kept apart only if there is one shape of it, found {len(shapes)}"
            " (rank, alpha, DoRA); give all parts with lora the same, or let them be merged"
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
            inference_mode=True,
        )
        .to_dict()
    )
    config["target_modules"] = sorted(modules)
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    return folder


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    layer_class = import_peft().tuners.lora.LoraLayer
    for path, module in model.named_modules():
        if isinstance(module, layer_class):
            yield path, module
