"""Make a LoRA of random numbers in PEFT's format, for an open model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def make_adapter(
    folder: Path,
    model: Any,
    modules: Sequence[str],
    *,
    rank: int = 4,
    alpha: int = 6,
    strength: float = 0.3,
    seed: int = 0,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Write the folder.

    Args:
        folder: Destination.
        model: An open transformers model.
        modules: Names of its linear modules.
        rank: The same for all modules.
        alpha: The product is scaled by `alpha / rank`.
        strength: Standard deviation of the numbers.
        seed: Of the numbers.
        **config: Further keys of `adapter_config.json`.

    Returns:
        Module name -> product to add to its weight.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, products = {}, {}
    for name in modules:
        outputs, inputs = model.get_submodule(name).weight.shape
        a_RI = torch.randn((rank, inputs), generator=generator) * strength
        b_OR = torch.randn((outputs, rank), generator=generator) * strength
        tensors[f"base_model.model.{name}.lora_A.weight"] = a_RI
        tensors[f"base_model.model.{name}.lora_B.weight"] = b_OR
        products[name] = torch.einsum("or,ri->oi", b_OR, a_RI) * (alpha / rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return products
