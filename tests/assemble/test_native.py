"""SigLIP 2 of native resolution, in LFM2-VL's class: images in their own shape."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.support.assembled import PERCEIVER, check_writes, language, made_of, vision
from tests.support.families import noise

from consomme.assemble.check import check_folder
from consomme.assemble.choices import (
    CrossAttentionFusion,
    LinearConnector,
    MlpConnector,
    PixelShuffleConnector,
)
from consomme.assemble.parts import open_vision
from consomme.base.errors import RecipeError
from consomme.base.sample import Turn
from consomme.models.anatomy import anatomy
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.token_counts import TokenCounter
from consomme.models.weights import open_model, save_vlm

SHUFFLE = PixelShuffleConnector(factor=2, layers=2)


def native() -> Any:
    return vision("siglip2", image_px=64)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize(
    ("connector", "plan", "num_tokens"),
    [
        (SHUFFLE, {}, 16),
        (MlpConnector(), {}, 64),
        (SHUFFLE, {"image_px": 96}, 36),
        (SHUFFLE, {"is_split": True, "image_px": 128}, 16),
    ],
    ids=["shuffle", "mlp", "larger", "split"],
)
def test_it_is_its_parts_and_opens_as_what_it_was(
    family: str, connector: Any, plan: dict[str, Any], num_tokens: int, tmp_path: Path
) -> None:
    say, see = language(family, max_positions=2048), native()
    weights = {name: tensor.clone() for name, tensor in see.model.state_dict().items()}
    made = made_of(connector, see, say, **plan)
    assert (made.kind, made.num_tokens, made.reasons) == ("lfm2_vl", num_tokens, [])
    stored = made.model.model.vision_tower.state_dict()
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    check_folder(folder, made)
    # Images of these sizes have fewer tokens than the largest, so only the rest of the checks.
    made.__dict__["num_tokens"] = 1
    opened = check_writes(made, folder)
    assert anatomy(opened).vision_encoder


def test_tokens_follow_the_shape() -> None:
    made = made_of(SHUFFLE, native(), language(max_positions=2048), image_px=128)
    chat = chat_encoder_for(made.model.config, made.processor)
    turns = [Turn(role="user", content="what is it?"), Turn(role="assistant", content="a circle")]
    # LFM2-VL's processor does not tell sizes, so samples are prepared to be counted.
    assert TokenCounter(chat).refused
    counts = []
    for size in ((128, 128), (400, 100), (100, 400), (64, 64), (640, 480)):
        row = chat.encode(turns, [noise(0, *size)])
        counts.append(row.input_ids.count(made.model.config.image_token_id))
    assert counts[0] == 64
    assert counts[1] == counts[2]
    assert max(counts) <= 64
    assert min(counts) >= 16


def test_an_encoder_with_its_text_half_is_opened(tmp_path: Path) -> None:
    """As the hub has them: `siglip2`, with a pooling head that no VLM uses."""
    from transformers import Siglip2Config, Siglip2Model

    shape = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 8, "num_patches": 16,
    }  # fmt: skip
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 64, "projection_size": 24}  # fmt: skip
    Siglip2Model(Siglip2Config(vision_config=shape, text_config=text)).save_pretrained(tmp_path)
    see = open_vision(tmp_path)
    assert (see.is_native, see.side, see.image_px) == (True, 4, 32)
    made = made_of(SHUFFLE, see)
    assert not any("head" in name for name, _ in made.model.model.vision_tower.named_parameters())
    folder = save_vlm(tmp_path / "vlm", made.model, made.processor)
    check_folder(folder, made)
    again = open_vision(folder)
    stored = made.model.model.vision_tower.state_dict()
    assert all(torch.equal(t, stored[n]) for n, t in again.model.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"connector": PERCEIVER}, "found the connector perceiver"),
        ({"connector": LinearConnector()}, "found the connector linear"),
        ({"connector": SHUFFLE, "fusion": CrossAttentionFusion(every=1)}, "gated blocks"),
        ({"connector": SHUFFLE, "vision_layer": -2}, "vision_layer=-2"),
        ({"connector": SHUFFLE, "image_px": 72}, "expected a multiple of 16"),
        ({"connector": SHUFFLE, "tiling": {"name": "square", "tile_px": 64}}, "found a tiling"),
    ],
)
def test_what_the_class_does_not_hold_is_refused(plan: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        made_of(see=native(), **plan)


@torch.no_grad()
def test_an_image_is_seen_in_its_own_shape(tmp_path: Path) -> None:
    """Two images that are equal once they are squashed are not the same here."""
    made = made_of(SHUFFLE, native())
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    model, processor = open_model(folder)
    chat = chat_encoder_for(model.config, processor)
    turns = [Turn(role="user", content="what is it?")]
    wide = Image.new("RGB", (128, 32), "red")
    shapes = [
        chat.encode_prompt(turns, [image]).pixels.inputs["spatial_shapes"].tolist()  # type: ignore[union-attr]
        for image in (wide, wide.rotate(90, expand=True))
    ]
    assert shapes[0][0] == shapes[1][0][::-1]
    assert shapes[0][0][0] < shapes[0][0][1]
