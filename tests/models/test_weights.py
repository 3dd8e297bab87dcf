"""Model folders: saving and opening changes nothing, and every tensor has its stored name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.image_models import tokenizer

from consomme.base.errors import CheckpointError
from consomme.models.debug import make_debug_vlm
from consomme.models.imports import import_transformers
from consomme.models.weights import (
    build_from_config,
    load_tensors,
    open_keys,
    open_model,
    open_vlm,
    save_trained,
    save_vlm,
)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights."""
    return make_debug_vlm(tmp_path_factory.mktemp("other") / "vlm", seed=1)


def test_every_stored_tensor_is_found_in_the_open_model(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    files = stored(debug_vlm)
    names, named = open_keys(model, files), parameters(model)
    assert set(names) == set(files)
    assert all(torch.equal(named[names[key]], files[key]) for key in files)
    assert any(key.startswith("vision_tower.vision_model.") for key in files)
    assert open_keys(model, ["no.such.weight"]) == {}


def test_saving_an_opened_model_changes_nothing(debug_vlm: Path, tmp_path: Path) -> None:
    model, processor = open_vlm(debug_vlm)
    again = save_vlm(tmp_path / "again", model, processor)
    before, after = stored(debug_vlm), stored(again)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    for name in ("tokenizer.json", "chat_template.jinja", "processor_config.json"):
        assert (again / name).read_bytes() == (debug_vlm / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "nothing half-built stays"
    assert not list(again.glob("*.bin"))


def test_saving_replaces_an_older_folder_whole(debug_vlm: Path, tmp_path: Path) -> None:
    model, processor = open_vlm(debug_vlm)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.safetensors").write_bytes(b"")
    save_vlm(tmp_path / "model", model.to(torch.bfloat16), processor)
    assert {p.name for p in (tmp_path / "model").glob("*.safetensors")} == {"model.safetensors"}
    assert {t.dtype for t in stored(tmp_path / "model").values()} == {torch.bfloat16}
    reopened, _ = open_vlm(tmp_path / "model")
    assert reopened.dtype == torch.float32
    assert not reopened.training


def test_load_tensors_replaces_all_weights(debug_vlm: Path, other: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    wanted = parameters(open_vlm(other)[0])
    assert any(not torch.equal(p, wanted[n]) for n, p in model.named_parameters())
    load_tensors(model, stored(other))
    assert all(torch.equal(p, wanted[n]) for n, p in model.named_parameters())


def test_load_tensors_refuses_other_shapes_and_missing_tensors(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    weights = stored(debug_vlm)
    name = "language_model.lm_head.weight"
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape .* the model has"):
        load_tensors(model, {**weights, name: weights[name][:-1]})
    del weights[name]
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load_tensors(model, weights)


def test_a_folder_that_is_no_checkpoint_is_named(debug_vlm: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nothing: expected"):
        open_vlm(tmp_path / "nothing")
    (tmp_path / "config.json").write_text((debug_vlm / "config.json").read_text())
    with pytest.raises(CheckpointError, match="cannot load the checkpoint"):
        open_vlm(tmp_path)


def test_a_family_that_needs_another_package_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "perception_lm"}')
    with pytest.raises(CheckpointError, match=r"package that is not installed: [^$]*timm"):
        build_from_config(tmp_path)


def test_the_debug_model_depends_on_its_seed_alone(
    debug_vlm: Path, other: Path, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    again = make_debug_vlm(tmp_path / "again")
    assert torch.equal(state, torch.get_rng_state())
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (debug_vlm / name).read_bytes()
    assert (other / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()
    config = json.loads((again / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config, "no code of ours is needed to load it"


def test_a_model_with_code_of_its_own_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    """The code is not run, whatever the loader would do with it."""
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit"
    (tmp_path / "configuration_mine.py").write_text(code)
    with pytest.raises(CheckpointError) as raised:
        open_model(tmp_path)
    message = str(raised.value)
    assert "model_type 'mine' is none of transformers" in message
    assert "configuration_mine.py" in message
    assert "engine={name: openai" in message
    assert "trust_remote_code" not in message
    assert not (tmp_path / "ran").exists()


@torch.no_grad()
def test_what_came_from_gguf_is_opened_and_saved_as_a_plain_model(tmp_path: Path) -> None:
    # As transformers saves what it opened from a GGUF file: floats, and this in the config.
    hf = import_transformers()
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer(16).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    origin = {"quant_method": "gguf", "gguf_file": "model.Q4_1.gguf", "dequantize": False}
    plain, _ = open_model(tmp_path / "model")
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": origin}))
    model, _ = open_model(tmp_path / "model")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    saved = save_trained(tmp_path / "saved", model, tmp_path / "model", 2)
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())
    again, _ = open_model(saved)
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(again(ids).logits, plain(ids).logits)
