"""A soup mixed in memory is the soup that is written, in every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.families import FAMILIES, make, noise

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.engines.generation.requests import Request
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import load_tensors, open_keys, open_model, save_vlm
from consomme.soup.ingredients import open_ingredient
from consomme.soup.mixing import ModelMix, average_ingredients
from consomme.soup.writing import write_soup

pytestmark = pytest.mark.slow


def ingredient(name: str, folder: Path, number: int, *, is_plain: bool) -> Path:
    """Write a model; other numbers have other weights, buffers included."""
    make(name, folder)
    model, processor = open_model(folder)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    if is_plain:
        model.save_pretrained(folder)
    else:
        save_vlm(folder, model, processor)
    return folder


@torch.inference_mode()
def logits(model: Any, processor: Any) -> torch.Tensor:
    chat = chat_encoder_for(model.config, processor)
    row = chat.encode_prompt([Turn(role="user", content="a red star?")], [noise(0, 64, 48)])
    assert row.pixels is not None
    inputs = dict(row.pixels.inputs)
    if "token_type_ids" in inputs or model.config.model_type in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = torch.tensor([row.token_types])
    elif model.config.model_type.startswith("qwen"):
        inputs["mm_token_type_ids"] = torch.tensor([row.token_types])
    found: torch.Tensor = model(input_ids=torch.tensor([row.input_ids]), **inputs).logits
    return found


@pytest.mark.parametrize(
    "is_plain",
    [True, pytest.param(False, marks=pytest.mark.long)],
    ids=["transformers", "consomme"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_soup_in_memory_is_the_written_soup(tmp_path: Path, name: str, is_plain: bool) -> None:
    folders = [
        ingredient(name, tmp_path / str(number), number, is_plain=is_plain) for number in (1, 2)
    ]
    ingredients = [open_ingredient(folder) for folder in folders]
    weights = [0.25, 0.75]
    written = open_model(write_soup(tmp_path / "soup", ModelMix.of(ingredients, weights)))
    model, processor = open_model(folders[0])
    alone = logits(model, processor)
    load_tensors(model, dict(average_ingredients(ingredients, weights)))
    mixed = logits(model, processor)
    assert torch.equal(mixed, logits(*written))
    assert not torch.allclose(mixed, alone, atol=1e-3)
    # The names of stored tensors lead to the parameters, as adapters need it.
    tensors = load_file(folders[0] / "model.safetensors")
    first = dict(open_model(folders[0])[0].named_parameters())
    names = open_keys(model, tensors)
    assert {id(first[name]) for name in names.values()} == {id(one) for one in first.values()}
    assert all(torch.equal(first[names[key]], tensors[key]) for key in names)


def test_the_writer_takes_the_weights_of_another_family_member(tmp_path: Path) -> None:
    folders = [ingredient("gemma3", tmp_path / str(k), k, is_plain=True) for k in (1, 2)]
    engine = TransformersEngine(folders[0])
    question = Request.of_prompt("star?", [noise(1, 40, 40)])
    before = engine.generate([question])
    engine.load_weights(load_file(folders[1] / "model.safetensors"))
    after = engine.generate([question])
    assert after != before
    assert after == TransformersEngine(folders[1]).generate([question])


def test_weights_of_a_stranger_change_nothing(tmp_path: Path) -> None:
    model, _ = open_model(ingredient("qwen2_vl", tmp_path / "one", 1, is_plain=True))
    make("internvl", tmp_path / "other")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"not the same architecture|is missing"):
        load_tensors(model, load_file(tmp_path / "other" / "model.safetensors"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
