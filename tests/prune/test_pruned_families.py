"""Models of every family without some layers, against the whole models that skip them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.deep_families import write_deep
from tests.support.families import FAMILIES
from tests.support.family_table import TABLE
from torch import nn

from consomme.base.errors import CheckpointError, ConsommeError
from consomme.models.anatomy import language_model
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model
from consomme.prune.checking import check_pruned, is_cacheable, probes, skipped_outputs
from consomme.prune.layer_config import fixed_layers
from consomme.prune.writing import plan_removal, write_pruned

pytestmark = pytest.mark.slow

QUICK = ("gemma3", "gpt2", "internvl_gpt_oss", "llama4", "llava", "qwen3_vl")

UNOPENED = (
    "blip2", "fast_vlm", "florence2", "fuyu", "gemma3n", "instructblip", "kosmos2", "perception_lm",
    "idefics", "blip", "git", "t5gemma2", "diffusion_gemma", "bert", "step3p7",
)  # fmt: skip
"""Families that other tests see refused when they are opened, or that need another package."""

REFUSED = {
    "cosmos3_edge": "mm_token_type_ids",
    "gemma3n_text_shared": "uses the keys and values of layer",
    # Their configs make the last layer one of full attention, whatever they say.
    "gemma4": "would be another one",
    "gemma4_unified": "would be another one",
    "glm5_next": "generates something else with a cache",
    "granite4_vision": "do something by their number",
    "jamba": "would be another one",
    "minimax": "num_hidden_layers",
    "muse_glimmer": "list index out of range",
    "rwkv": "pre_ln",
    "zamba2": "",
}
"""Families in which some layers cannot be removed, and what is said."""


def removals(model: Any) -> list[tuple[int, ...]]:
    """Layers to remove: the last, two in the middle, the first; none that a family needs."""
    num = len(model.get_submodule(language_model(model).layers_path))
    fixed = fixed_layers(model.config)
    wanted = [(num - 1,), (num // 2 - 1, num // 2), (0,), (0, num - 1)]
    return [one for one in wanted if not set(one) & set(fixed)]


def without_modules(model: Any, removed: tuple[int, ...]) -> None:
    """Take layers out of an open model by hand, and number the others."""
    path = language_model(model).layers_path
    owner = model.get_submodule(path.rpartition(".")[0])
    kept = [one for k, one in enumerate(owner.layers) if k not in removed]
    owner.layers = nn.ModuleList(kept)
    for number, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number


@pytest.mark.parametrize(
    "name",
    [
        one if one in QUICK else pytest.param(one, marks=pytest.mark.long)
        for one in sorted({*TABLE, "gemma3n_text_shared"} - set(UNOPENED))
    ],
)
def test_a_model_without_layers_is_the_model_that_skips_them(tmp_path: Path, name: str) -> None:
    folder = write_deep(name, tmp_path / name)
    model, processor = open_model(folder)
    chat = chat_encoder_for(model.config, processor)
    try:
        inputs = probes(model, chat)
    except CheckpointError as error:
        refusals = [str(error)]
        wanted = []
    else:
        refusals, wanted = [], removals(model)
    written = 0
    for removed in wanted:
        expected = skipped_outputs(model, inputs, removed)
        whole = skipped_outputs(model, inputs, ())
        assert not torch.allclose(expected.logits[0], whole.logits[0], atol=1e-3)
        try:
            removal = plan_removal(folder, removed)
            target = write_pruned(tmp_path / f"without-{removed}", removal)
            pruned, _ = open_model(target)
            difference = check_pruned(pruned, inputs, expected)
        except ConsommeError as error:
            refusals.append(str(error))
            continue
        assert difference < 1e-5
        written += 1
        assert removal.num_parameters < plan_removal(folder, ()).num_parameters
        assert pruned.config.get_text_config().num_hidden_layers == removal.num_layers - len(
            removed
        )
        assert is_cacheable(pruned, inputs[0]) or not expected.is_cacheable
        if name in FAMILIES:
            by_hand, _ = open_model(folder)
            without_modules(by_hand, removed)
            with torch.inference_mode():
                ours, theirs = (one(**inputs[0]).logits for one in (pruned, by_hand))
            assert torch.equal(ours, theirs)
    assert bool(refusals) == (name in REFUSED), refusals
    assert all(REFUSED[name] in one for one in refusals), refusals
    assert written or name in ("cosmos3_edge", "minimax", "muse_glimmer", "zamba2"), refusals


def test_no_removed_layer_is_the_model_bit_for_bit(tmp_path: Path, debug_vlm: Path) -> None:
    copied = write_pruned(tmp_path / "same", plan_removal(debug_vlm, ()))
    files = {path.name: path.read_bytes() for path in debug_vlm.iterdir() if path.is_file()}
    files.pop("README.md", None)
    assert {p.name: p.read_bytes() for p in copied.iterdir() if p.is_file()} == files


def test_what_came_from_gguf_is_pruned_and_what_is_quantised_is_not(
    tmp_path: Path, debug_vlm: Path
) -> None:
    folder = shutil.copytree(debug_vlm, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())

    def pruned(**quantised: Any) -> Path:
        told = json.dumps({**content, "quantization_config": quantised})
        (folder / "config.json").write_text(told)
        return write_pruned(tmp_path / "pruned", plan_removal(folder, (0,)))

    with pytest.raises(ConsommeError, match="found a quantised model"):
        pruned(quant_method="awq", bits=4)
    made = pruned(quant_method="gguf", gguf_file="x.gguf", dequantize=False)
    assert "quantization_config" not in json.loads((made / "config.json").read_text())


def test_what_is_kept_is_kept_bit_for_bit_in_files_of_any_size(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_deep("gemma3n_text", tmp_path / "deep")
    whole = load_file(folder / "model.safetensors")
    removal = plan_removal(folder, (1,))
    target = write_pruned(tmp_path / "pruned", removal, max_file_bytes=20_000)
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 3
    found = {name: one for file in files for name, one in load_file(file).items()}
    for name, tensor in found.items():
        if ".layers." in name:
            number = int(name.split(".layers.")[1].split(".")[0])
            old = name.replace(f".layers.{number}.", f".layers.{(0, 2, 3)[number]}.")
            assert torch.equal(tensor, whole[old])
        elif tensor.shape == whole[name].shape:
            assert torch.equal(tensor, whole[name])
        else:
            # Embeddings for each layer: its blocks go too.
            dim = next(d for d in range(2) if tensor.shape[d] != whole[name].shape[d])
            blocks = whole[name].chunk(4, dim=dim)
            assert torch.equal(tensor, torch.cat([blocks[k] for k in (0, 2, 3)], dim=dim))
    open_model(target)


def test_a_list_as_long_as_the_model_is_not_guessed(tmp_path: Path) -> None:
    import json

    folder = write_deep("qwen3", tmp_path / "deep")
    content = json.loads((folder / "config.json").read_text())
    content["strange_pattern"] = [1, 2, 3, 4]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"strange_pattern of qwen3 has 4 entries"):
        plan_removal(folder, (1,))
