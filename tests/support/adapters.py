"""Make a LoRA in PEFT's format, of random numbers, for an open model."""

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
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Write the folder.

    Args:
        folder: Where to.
        model: An open transformers model.
        modules: Names of linear modules of it.
        rank: Of all of them.
        alpha: The product counts `alpha / rank` times.
        strength: Size of the numbers.
        **config: More for `adapter_config.json`.

    Returns:
        What is to be added to each weight, by module.
    """
    generator = torch.Generator().manual_seed(0)
    tensors, products = {}, {}
    for name in modules:
        outputs, inputs = model.get_submodule(name).weight.shape
        first = torch.randn((rank, inputs), generator=generator) * strength
        second = torch.randn((outputs, rank), generator=generator) * strength
        tensors[f"base_model.model.{name}.lora_A.weight"] = first
        tensors[f"base_model.model.{name}.lora_B.weight"] = second
        products[name] = torch.einsum("or,ri->oi", second, first) * (alpha / rank)
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
