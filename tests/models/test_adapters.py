"""A merged adapter adds its products; anything else is refused before a weight changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.adapters import make_adapter

from consomme.base.errors import CheckpointError
from consomme.models.adapters import merge_adapter, open_adapter
from consomme.models.weights import open_vlm

MODULES = [
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.3.mlp.down_proj",
    "model.multi_modal_projector.linear_1",
]


@pytest.fixture
def model(debug_vlm: Path) -> Any:
    return open_vlm(debug_vlm)[0]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_merging_adds_the_product_to_the_named_weights_only(model: Any, tmp_path: Path) -> None:
    products = make_adapter(tmp_path, model, MODULES)
    before = weights(model)
    merge_adapter(model, open_adapter(tmp_path))
    for name, value in weights(model).items():
        module = name.removesuffix(".weight")
        if module in products:
            torch.testing.assert_close(value, before[name] + products[module])
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name


def test_module_names_of_stored_files_are_accepted(
    model: Any, debug_vlm: Path, tmp_path: Path
) -> None:
    make_adapter(tmp_path / "new", model, MODULES[:1])
    tensors = load_file(tmp_path / "new" / "adapter_model.safetensors")
    old = {
        name.replace("model.language_model.", "language_model.model."): value
        for name, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "adapter_model.safetensors")
    (tmp_path / "old" / "adapter_config.json").write_bytes(
        (tmp_path / "new" / "adapter_config.json").read_bytes()
    )
    other = open_vlm(debug_vlm)[0]
    merge_adapter(model, open_adapter(tmp_path / "new"))
    merge_adapter(other, open_adapter(tmp_path / "old"))
    assert all(
        torch.equal(a, b) for a, b in zip(weights(model).values(), other.parameters(), strict=True)
    )


def test_the_sum_is_cast_once(debug_vlm: Path, tmp_path: Path) -> None:
    half = open_vlm(debug_vlm, torch.bfloat16)[0]
    products = make_adapter(tmp_path, half, MODULES[:1], strength=0.01)
    name = MODULES[0] + ".weight"
    expected = (weights(half)[name].float() + products[MODULES[0]]).to(torch.bfloat16)
    merge_adapter(half, open_adapter(tmp_path))
    assert torch.equal(weights(half)[name], expected)


def test_rank_stabilised_adapters_divide_by_the_root_of_the_rank(
    model: Any, tmp_path: Path
) -> None:
    make_adapter(tmp_path, model, MODULES[:1], rank=4, alpha=6, use_rslora=True)
    assert open_adapter(tmp_path).scale == 3.0


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"fan_in_fan_out": True},
        {"peft_type": "LOHA"},
    ],
)
def test_anything_but_a_plain_product_is_refused(
    model: Any, tmp_path: Path, config: dict[str, Any]
) -> None:
    make_adapter(tmp_path, model, MODULES[:1], **config)
    with pytest.raises(CheckpointError, match=next(iter(config))):
        open_adapter(tmp_path)


def test_the_first_tensor_without_a_place_is_named(model: Any, tmp_path: Path) -> None:
    make_adapter(tmp_path, model, MODULES[:2])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for kind in ("A", "B"):
        key = f"base_model.model.{MODULES[1]}.lora_{kind}.weight"
        tensors[key.replace("layers.3", "layers.99")] = tensors.pop(key)
    save_file(tensors, path)
    before = weights(model)
    with pytest.raises(CheckpointError, match=r"layers\.99\.mlp\.down_proj.*is missing"):
        merge_adapter(model, open_adapter(tmp_path))
    assert all(
        torch.equal(a, b) for a, b in zip(weights(model).values(), before.values(), strict=True)
    )


def test_an_adapter_for_another_size_is_refused(model: Any, tmp_path: Path) -> None:
    make_adapter(tmp_path, model, MODULES[:1])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    (first,) = [name for name in tensors if "lora_A" in name]
    tensors[first] = torch.zeros((4, 999))
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"has the shape \(64, 64\), the adapter is for"):
        merge_adapter(model, open_adapter(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.popitem() and t, "no partner that fits"),
        (lambda t: {**t, "base_model.model.lm_head.weight": torch.zeros(2)}, "none of a plain"),
        (lambda t: {}, "empty"),
    ],
)
def test_an_incomplete_adapter_is_refused(
    model: Any, tmp_path: Path, change: Any, message: str
) -> None:
    make_adapter(tmp_path, model, MODULES[:1])
    path = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not there"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is not there"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot read"):
        open_adapter(tmp_path)
