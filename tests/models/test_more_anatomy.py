"""Families whose parts are hard to tell: Linear patches, audio towers, convolutions that project.

The expected modules are written down by hand; that the method `get_image_features` runs them and
nothing else is shown by hooks on a pass.
"""

from typing import Any

import pytest
import torch
from tests.support.anatomy_families import MORE_FAMILIES, fuyu, make_model, pictures_of
from tests.support.families import FAMILIES
from tests.support.new_families import idefics

from consomme.base.errors import CheckpointError
from consomme.models import anatomy as anatomy_module
from consomme.models.anatomy import Anatomy, anatomy, language_layers, name_parts
from consomme.train import parts as train_parts

TEXT = "model.language_model."
EMBEDDINGS, HEAD = (f"{TEXT}embed_tokens",), (f"{TEXT}norm", "lm_head")

EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "lfm2_vl": {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "head": (f"{TEXT}embedding_norm",),
    },
    "gemma4": {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.embed_vision",),
        "audio_encoder": ("model.audio_tower", "model.embed_audio"),
        "embeddings": (
            *EMBEDDINGS,
            f"{TEXT}embed_tokens_per_layer",
            f"{TEXT}per_layer_model_projection",
            f"{TEXT}per_layer_projection_norm",
        ),
        "head": (f"{TEXT}norm",),
    },
    "gemma3n": {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.embed_vision",),
        "audio_encoder": ("model.audio_tower", "model.embed_audio"),
        "embeddings": (
            *EMBEDDINGS,
            f"{TEXT}embed_tokens_per_layer",
            f"{TEXT}per_layer_model_projection",
            f"{TEXT}per_layer_projection_norm",
            f"{TEXT}altup_projections",
        ),
        "head": (f"{TEXT}norm", f"{TEXT}altup_unembed_projections"),
    },
    "fast_vlm": {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
    },
    "ernie4_5_vl": {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.resampler_model",),
        "head": (f"{TEXT}norm",),
    },
    "llama4": {
        "vision_encoder": (
            "vision_model.class_embedding",
            "vision_model.positional_embedding_vlm",
            "vision_model.patch_embedding",
            "vision_model.layernorm_pre",
            "vision_model.layernorm_post",
            "vision_model.model",
        ),
        "projector": ("vision_model.vision_adapter", "multi_modal_projector"),
        "embeddings": ("language_model.model.embed_tokens",),
        "head": ("language_model.model.norm", "language_model.lm_head"),
    },
    "got_ocr2": {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "head": (f"{TEXT}norm",),
    },
    "glm4v": {
        "vision_encoder": (
            "model.visual.embeddings",
            "model.visual.patch_embed",
            "model.visual.blocks",
            "model.visual.post_conv_layernorm",
            "model.visual.post_layernorm",
        ),
        "projector": ("model.visual.downsample", "model.visual.merger"),
    },
    "ovis2": {
        "vision_encoder": ("model.vision_tower.transformer",),
        "projector": (
            "model.vision_tower.head_linear",
            "model.vision_tower.head_norm",
            "model.visual_embeddings_table",
        ),
        "head": (f"{TEXT}norm",),
    },
    "qwen3_vl_moe": {
        "vision_encoder": (
            "model.visual.patch_embed",
            "model.visual.pos_embed",
            "model.visual.blocks",
        ),
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
    },
    "qwen2_5_omni": {
        "vision_encoder": ("visual.patch_embed", "visual.blocks"),
        "projector": ("visual.merger",),
        "audio_encoder": ("audio_tower",),
        "embeddings": ("model.embed_tokens",),
        "head": ("model.norm", "lm_head"),
    },
    "mllama": {
        "vision_encoder": ("model.vision_model",),
        "projector": ("model.multi_modal_projector",),
    },
    "video_llava": {
        "vision_encoder": ("model.image_tower",),
        "projector": ("model.multi_modal_projector",),
        "video_encoder": ("model.video_tower",),
    },
}


def parts_of(found: Anatomy) -> dict[str, str]:
    """Every parameter's part, by its name."""
    named = {
        "vision_encoder": found.vision_encoder,
        "projector": found.projector,
        "embeddings": found.embeddings,
        "head": found.head,
        **found.sides,
        **{f"layer {index}": layer for index, layer in enumerate(found.layers)},
    }
    pairs = [(name, part) for part, some in named.items() for name in some]
    assert len(dict(pairs)) == len(pairs), "a parameter is in two parts"
    return dict(pairs)


def expected_part(family: str, name: str, layers_path: str) -> str:
    if name.startswith(f"{layers_path}."):
        return f"layer {name.removeprefix(layers_path).split('.')[1]}"
    table = {"embeddings": EMBEDDINGS, "head": HEAD, **EXPECTED[family]}
    (part,) = (
        part
        for part, modules in table.items()
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    )
    return part


@pytest.mark.parametrize("family", MORE_FAMILIES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_parts_are_those_written_down_by_hand(family: str, device: str) -> None:
    with torch.device(device):
        model = make_model(family)
    found = anatomy(model)
    parts = parts_of(found)
    assert parts == {
        name: expected_part(family, name, found.layers_path) for name, _ in model.named_parameters()
    }
    assert len(found.layers) == model.config.get_text_config().num_hidden_layers
    assert [set(layer) for layer in language_layers(model)] == [set(x) for x in found.layers]


@pytest.mark.parametrize("family", [name for name in MORE_FAMILIES if pictures_of(name)])
def test_a_picture_passes_through_encoder_and_projector_and_nothing_else(family: str) -> None:
    model = make_model(family)
    parts = parts_of(anatomy(model))
    run: list[str] = []

    def note(path: str) -> Any:
        return lambda *_: run.append(path)

    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(note(path))
    with torch.no_grad():
        model.get_image_features(**pictures_of(family))
    found = {
        parts[f"{path}.{name}"]
        for path in run
        for name, _ in model.get_submodule(path).named_parameters(recurse=False)
    }
    # The table of Ovis 2 is read without a call; some encoders are run through their weights.
    assert "vision_encoder" in found
    assert found <= {"vision_encoder", "projector"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_known_families_have_no_other_parts(family: str) -> None:
    torch.manual_seed(0)
    model, _ = FAMILIES[family]()
    assert not anatomy(model).sides


def test_what_cannot_be_told_is_refused_and_can_be_named() -> None:
    model = fuyu()
    with pytest.raises(CheckpointError, match="cannot tell the vision encoder of a Fuyu") as error:
        anatomy(model)
    assert "model.vision_embed_tokens (Linear)" in str(error.value)
    assert "parts={vision_encoder" in str(error.value)
    # Layers are found even so: nothing about them is in doubt.
    assert len(language_layers(model)) == 2
    named = {"projector": ("model.vision_embed_tokens",)}
    found = anatomy(model, named)
    assert set(found.projector) == {
        "model.vision_embed_tokens.weight",
        "model.vision_embed_tokens.bias",
    }
    assert not found.vision_encoder
    name_parts(model, named)
    assert parts_of(anatomy(model)) == parts_of(found)


def test_named_modules_go_before_found_ones() -> None:
    model = make_model("got_ocr2")
    found = anatomy(
        model, {"projector": ("model.multi_modal_projector", "model.vision_tower.neck")}
    )
    assert "model.vision_tower.neck.conv1.weight" in found.projector
    assert not any(name.startswith("model.vision_tower.neck") for name in found.vision_encoder)
    assert any(name.startswith("model.vision_tower.layers") for name in found.vision_encoder)
    with pytest.raises(
        CheckpointError, match=r"has no module 'model\.tower'; expected one of"
    ) as no:
        anatomy(model, {"vision_encoder": ("model.tower",)})
    assert "model.vision_tower (GotOcr2VisionEncoder)" in str(no.value)
    with pytest.raises(CheckpointError, match="holds layers of the language model"):
        anatomy(model, {"projector": ("model.language_model.layers.0",)})
    with pytest.raises(CheckpointError, match="holds layers of the language model"):
        anatomy(model, {"projector": ("model",)})
    with pytest.raises(
        CheckpointError, match="parts: found language_model, expected one of vision"
    ):
        anatomy(model, {"language_model": ("model.language_model",)})


def test_a_recipe_can_name_what_the_model_code_can() -> None:
    assert train_parts.NAMEABLE_PARTS == anatomy_module.NAMEABLE


def test_a_second_stack_of_layers_is_refused_and_can_be_named() -> None:
    """IDEFICS has layers of cross-attention beside those of its language model."""
    model, _ = idefics()
    with pytest.raises(CheckpointError, match="a second stack of layers") as error:
        anatomy(model)
    assert "parts={projector: [model.gated_cross_attn_layers]}" in str(error.value)
    found = anatomy(model, {"projector": ("model.gated_cross_attn_layers",)})
    assert any(name.startswith("model.gated_cross_attn_layers.0") for name in found.projector)
    assert not any("gated_cross_attn" in name for name in found.head)
