"""Adapters as ingredients: mixed like the models that they make, in every family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.soup.test_mixing import checkpoint, state
from tests.support.adapters import make_adapter
from tests.support.families import FAMILIES, make

from consomme.base.errors import CheckpointError
from consomme.models.adapters import merge_adapter, open_adapter
from consomme.models.weights import load_tensors, open_model
from consomme.soup.adapter import open_adapter_ingredient
from consomme.soup.ingredients import Ingredient, open_ingredient
from consomme.soup.methods import METHODS
from consomme.soup.mixing import ModelMix, mixed_tensors
from consomme.soup.writing import write_soup

MATRICES = ("q_proj", "qkv_proj", "down_proj", "query_key_value", "o_proj", "fc1")


def matrices(model: Any) -> list[str]:
    """Names of some linear layers, of every part that has any of these."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in MATRICES
    ]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().double() for name, value in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_every_family_are_averaged_as_merged_models(tmp_path: Path, name: str) -> None:
    make(name, tmp_path / "base")
    model, _ = open_model(tmp_path / "base")
    merged: list[dict[str, torch.Tensor]] = []
    modules = matrices(model)
    assert modules
    for number in (1, 2):
        # The second leaves some of the matrices of the first alone.
        make_adapter(tmp_path / str(number), model, modules[number - 1 :], seed=number)
        changed, _ = open_model(tmp_path / "base")
        merge_adapter(changed, open_adapter(tmp_path / str(number)))
        merged.append(weights(changed))
    base = open_ingredient(tmp_path / "base")
    opened = [open_adapter_ingredient(tmp_path / str(number), base) for number in (1, 2)]
    mix = ModelMix.of(opened)
    written = write_soup(tmp_path / "soup", mix)
    assert not list(written.glob("adapter*"))
    found = weights(open_model(written)[0])
    before = weights(model)
    assert {name for name in before if not torch.equal(found[name], before[name])} == {
        f"{module}.weight" for module in modules
    }
    for key, tensor in found.items():
        expected = (merged[0][key] + merged[1][key]) / 2
        torch.testing.assert_close(tensor, expected, rtol=2e-6, atol=2e-6)
    load_tensors(model, dict(mixed_tensors(mix)))
    assert all(torch.equal(one, found[key]) for key, one in weights(model).items())


def low_rank(
    folder: Path, seed: int, shape: tuple[int, int], module: str, base: str = "gone"
) -> np.ndarray:
    """Write an adapter of rank 3 and return what it adds, in float64."""
    generator = torch.Generator().manual_seed(seed)
    a_RI = torch.randn((3, shape[1]), generator=generator)
    b_OR = torch.randn((shape[0], 3), generator=generator)
    folder.mkdir()
    names = (f"base_model.model.{module}.lora_{part}.weight" for part in "AB")
    save_file(dict(zip(names, (a_RI, b_OR), strict=True)), folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return 2.0 * b_OR.double().numpy() @ a_RI.double().numpy()


@pytest.fixture
def base(tmp_path: Path) -> Ingredient:
    return open_ingredient(checkpoint(tmp_path / "base", state(0, torch.bfloat16)), "base")


def matrix_of(base: Ingredient) -> tuple[str, tuple[int, int]]:
    """Name of a module, and its shape, that is one matrix of the model."""
    name = next(n for n, spec in base.tensors.items() if len(spec.shape) == 2 and "weight" in n)
    shape = base.tensors[name].shape
    return name.removesuffix(".weight"), (shape[0], shape[1])


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_an_adapter_mixed_with_itself_is_its_model(
    tmp_path: Path, base: Ingredient, dtype: str
) -> None:
    module, shape = matrix_of(base)
    added = low_rank(tmp_path / "lora", 1, shape, module)
    one = open_adapter_ingredient(tmp_path / "lora", base, "one")
    two = open_adapter_ingredient(tmp_path / "lora", base, "two")
    found = dict(mixed_tensors(ModelMix.of([one, two], [0.3, 0.7], dtype=dtype)))
    stored = load_file(base.folder / "model.safetensors")[f"{module}.weight"]
    expected = torch.from_numpy((stored.double().numpy() + added).astype(np.float32))
    assert torch.equal(found[f"{module}.weight"].float(), expected.to(
        torch.float32 if dtype == "F32" else torch.bfloat16).float())  # fmt: skip


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_takes_an_adapter_for_its_model(
    tmp_path: Path, base: Ingredient, method: str
) -> None:
    module, shape = matrix_of(base)
    mixes = []
    added = {seed: low_rank(tmp_path / f"lora{seed}", seed, shape, module) for seed in (1, 2)}
    whole = {}
    for seed, product in added.items():
        tensors = {
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in state(0, torch.bfloat16).items()
        }
        key = f"{module}.weight"
        tensors[key] = torch.from_numpy(
            (tensors[key].double().numpy() + product).astype(np.float32)
        )
        whole[seed] = open_ingredient(checkpoint(tmp_path / f"m{seed}", tensors), f"lora{seed}")
    adapters = [open_adapter_ingredient(tmp_path / f"lora{seed}", base, f"lora{seed}")
                for seed in added]  # fmt: skip
    node = METHODS.build({"name": method})
    for models in (list(whole.values()), adapters):
        origin = base if node.needs_base else None
        mix = ModelMix.of(models, method=node, base=origin, dtype="F32")
        mixes.append(dict(mixed_tensors(mix)))
    assert all(torch.equal(mixes[0][key], tensor) for key, tensor in mixes[1].items())


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, base: Ingredient) -> None:
    module, shape = matrix_of(base)
    low_rank(tmp_path / "wide", 1, (shape[0], shape[1] + 1), module)
    with pytest.raises(CheckpointError, match=r"which in the base .* has the shape"):
        open_adapter_ingredient(tmp_path / "wide", base)
    low_rank(tmp_path / "nan", 1, shape, module)
    tensors = load_file(tmp_path / "nan" / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds NaN"):
        open_adapter_ingredient(tmp_path / "nan", base)


def test_a_model_folder_with_an_adapter_beside_it_is_the_model(
    tmp_path: Path, base: Ingredient
) -> None:
    module, shape = matrix_of(base)
    low_rank(tmp_path / "lora", 1, shape, module)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (base.folder / file).write_bytes((tmp_path / "lora" / file).read_bytes())
    assert open_ingredient(base.folder).tensors == base.tensors
    (base.folder / "model.safetensors").rename(tmp_path / "away.safetensors")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        open_ingredient(base.folder)
