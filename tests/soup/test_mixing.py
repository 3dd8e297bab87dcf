"""Averages are exact where they can be, streamed where they must be, refused for strangers."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from consomme.base.errors import CheckpointError, RecipeError
from consomme.soup.ingredients import check_compatible, open_ingredient
from consomme.soup.mixing import average_ingredients, mix_tensor, write_soup

CONFIG = {"architectures": ["X"], "hidden_size": 4, "transformers_version": "5.19.0"}


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(5, 4, generator=generator).to(dtype),
        "b.weight": torch.randn(3, generator=generator).to(dtype),
        "positions": torch.arange(7) + seed,
        "scale": torch.tensor(1.5 + seed).to(dtype),
    }


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text('{"model": "same"}')
    (folder / "optimizer.pt").write_bytes(b"not for the soup")
    return folder


def soup_of(tmp_path: Path, states: list[dict], weights=None) -> dict[str, torch.Tensor]:
    folders = [checkpoint(tmp_path / f"m{i}", s) for i, s in enumerate(states)]
    write_soup(tmp_path / "soup", [open_ingredient(f) for f in folders], weights)
    return load_file(tmp_path / "soup" / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_average_of_equal_models_is_that_model_bit_for_bit(tmp_path, dtype, count):
    mixed = soup_of(tmp_path, [state(0, dtype)] * count)
    for name, tensor in state(0, dtype).items():
        assert torch.equal(mixed[name], tensor)
        assert mixed[name].dtype == tensor.dtype


def test_average_is_the_sum_over_k_and_integers_are_copied(tmp_path):
    states = [state(i) for i in range(5)]
    mixed = soup_of(tmp_path, states)

    for name in ("a.weight", "b.weight", "scale"):
        expected = np.mean([s[name].double().numpy() for s in states], axis=0)
        np.testing.assert_allclose(mixed[name], expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(mixed["positions"], states[0]["positions"])


def test_bfloat16_is_averaged_in_float32_and_cast_once(tmp_path):
    # 256 + 1 is 256 in bfloat16: summing in bfloat16 would lose every small model.
    big, small = torch.full((4,), 256.0), torch.full((4,), 1.0)
    states = [{"w": t.bfloat16()} for t in (big, *[small] * 7)]
    mixed = soup_of(tmp_path, states)
    expected = torch.full((4,), (256 + 7) / 8).bfloat16()
    assert torch.equal(mixed["w"], expected)


def test_weights_are_normalised_and_a_single_share_is_that_model(tmp_path):
    states = [state(i) for i in range(3)]
    folders = [checkpoint(tmp_path / f"m{i}", s) for i, s in enumerate(states)]
    ingredients = [open_ingredient(folder) for folder in folders]
    one = dict(average_ingredients(ingredients, [0, 5, 0]))
    assert torch.equal(one["a.weight"], states[1]["a.weight"])

    mixed = dict(average_ingredients(ingredients, [1, 1, 2]))
    expected = (states[0]["b.weight"] + states[1]["b.weight"] + 2 * states[2]["b.weight"]) / 4
    torch.testing.assert_close(mixed["b.weight"], expected)
    for weights in ([1, 2], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1]):
        with pytest.raises(RecipeError, match="weights"):
            dict(average_ingredients(ingredients, weights))


def average_in_memory(states: list[dict]) -> dict[str, torch.Tensor]:
    shares = [1 / len(states)] * len(states)
    return {n: mix_tensor([partial(s.__getitem__, n) for s in states], shares) for n in states[0]}


def test_memory_disk_and_stream_agree(tmp_path):
    states = [state(i, torch.bfloat16) for i in range(4)]
    in_memory = average_in_memory(states)
    on_disk = soup_of(tmp_path, states)
    streamed = dict(average_ingredients([open_ingredient(tmp_path / f"m{i}") for i in range(4)]))
    for name, tensor in in_memory.items():
        assert torch.equal(tensor, on_disk[name])
        assert torch.equal(tensor, streamed[name])
    assert states[0]["a.weight"].equal(state(0, torch.bfloat16)["a.weight"]), "inputs untouched"


def test_sharded_checkpoints_keep_their_files(tmp_path):
    folders = []
    for seed in (0, 1):
        folder = checkpoint(tmp_path / f"s{seed}", {"a": state(seed)["a.weight"]})
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        save_file({"b": state(seed)["b.weight"]}, folder / "model-00002-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        folders.append(open_ingredient(folder))
    soup = write_soup(tmp_path / "soup", folders)
    assert sorted(p.name for p in soup.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "soup.json",
        "tokenizer.json",
    ]
    mixed = load_file(soup / "model-00002-of-00002.safetensors")["b"]
    torch.testing.assert_close(mixed, (state(0)["b.weight"] + state(1)["b.weight"]) / 2)


def test_soup_json_tells_where_it_came_from(tmp_path):
    folders = [checkpoint(tmp_path / n, state(i)) for i, n in enumerate(("emoji", "scenes"))]
    ingredients = [open_ingredient(f) for f in folders]
    soup = write_soup(tmp_path / "soup", ingredients, [1, 3], lineage={"search": "greedy"})
    record = json.loads((soup / "soup.json").read_text())
    assert [(i["name"], i["share"]) for i in record["ingredients"]] == [
        ("emoji", 0.25),
        ("scenes", 0.75),
    ]
    assert record["search"] == "greedy"
    assert not (soup / "optimizer.pt").exists()


def test_strangers_are_refused_with_the_first_difference(tmp_path):
    base = open_ingredient(checkpoint(tmp_path / "base", state(0)))

    def stranger(name: str, tensors: dict, tokenizer: str = "", **config):
        folder = checkpoint(tmp_path / name, tensors, **config)
        if tokenizer:
            (folder / "tokenizer.json").write_text(tokenizer)
        return open_ingredient(folder)

    short = {k: v for k, v in state(1).items() if k != "b.weight"}
    cases = [
        (stranger("short", short), r"'b.weight' is missing"),
        (stranger("long", state(1) | {"z": torch.ones(1)}), r"'z' exists only"),
        (stranger("wide", state(1) | {"b.weight": torch.ones(9)}), r"shape \[3\] against \[9\]"),
        (stranger("half", state(1, torch.float16)), r"'a.weight' is stored as F32 against F16"),
        (stranger("other", state(1), hidden_size=8), r"'hidden_size' is 4 against 8"),
        (stranger("words", state(1), tokenizer="{}"), r"tokenizers differ"),
    ]
    for other, difference in cases:
        with pytest.raises(CheckpointError, match=difference) as caught:
            check_compatible([base, other])
        assert "a soup of strangers: 'base' and" in str(caught.value)
    check_compatible([base, stranger("newer", state(2), transformers_version="6.0.0")])


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_ingredient(tmp_path / "nothing")
    folder = checkpoint(tmp_path / "cut", state(0))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cut off"):
        open_ingredient(folder)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_ingredient(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_ingredient(folder)
