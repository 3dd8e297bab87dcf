"""Every parameter of every family is in one part, whatever the family calls it."""

import pytest
import torch
from tests.support.families import FAMILIES
from torch import nn

from consomme.base.errors import CheckpointError
from consomme.models.anatomy import anatomy
from consomme.models.imports import import_transformers

hf = import_transformers()

PROJECTORS = {
    "llava": {"multi_modal_projector"},
    "llava_onevision": {"multi_modal_projector", "image_newline"},
    "idefics2": {"connector"},
    "idefics3": {"connector"},
    "smolvlm": {"connector"},
    "qwen2_vl": {"merger"},
    "qwen2_5_vl": {"merger"},
    "qwen3_vl": {"merger", "deepstack_merger_list"},
    "internvl": {"multi_modal_projector"},
    "gemma3": {"multi_modal_projector"},
    "paligemma": {"multi_modal_projector"},
}
TIED = {"internvl", "gemma3", "paligemma"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_part(family: str) -> None:
    torch.manual_seed(0)
    model, _ = FAMILIES[family]()
    parts = anatomy(model)
    lists = [
        parts.vision_encoder,
        parts.projector,
        *parts.layers,
        parts.embeddings,
        parts.head,
    ]
    assert sorted(name for part in lists for name in part) == sorted(
        name for name, _ in model.named_parameters()
    )
    assert len(parts.layers) == model.config.get_text_config().num_hidden_layers
    found = {word for name in parts.projector for word in name.split(".")}
    assert PROJECTORS[family] <= found
    for name in parts.projector:
        assert PROJECTORS[family] & set(name.split(".")), name
    for name in parts.vision_encoder:
        assert name.startswith(("model.vision", "model.visual")), name
    assert [name.split(".")[-2] for name in parts.embeddings] == ["embed_tokens"]
    assert parts.is_tied == (family in TIED)
    words = {name.split(".")[-2] for name in parts.head}
    assert words == ({"norm"} if parts.is_tied else {"norm", "lm_head"})


def test_a_language_model_has_no_vision_encoder() -> None:
    config = hf.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        vocab_size=20,
    )  # fmt: skip
    parts = anatomy(hf.LlamaForCausalLM(config))
    assert not parts.vision_encoder
    assert not parts.projector
    assert len(parts.layers) == 3
    assert set(parts.head) == {"model.norm.weight", "lm_head.weight"}
    assert parts.layers_path == "model.layers"


def test_other_modules_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"cannot find the parts of a Linear.*nn\.ModuleList"):
        anatomy(nn.Linear(1, 1))
