"""A VLM whose encoder takes larger squares: interpolated positions, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.assembled import PERCEIVER, check_writes, inputs, language, made_of, vision

from consomme.assemble.build import Assembled
from consomme.assemble.check import check_folder
from consomme.assemble.choices import (
    AverageConnector,
    CrossAttentionFusion,
    LinearConnector,
    MlpConnector,
    PixelShuffleConnector,
)
from consomme.assemble.resolution import change_resolution
from consomme.base.errors import RecipeError
from consomme.base.recipe import recipe_problems
from consomme.models.anatomy import anatomy
from consomme.models.weights import open_vlm, save_vlm
from consomme.pipelines.assemble.recipe import AssembleRecipe

CATTY = {"name": "catty", "tile_px": 32, "max_tiles": 3}
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    # How it is assembled; image tokens with squares of 64 px; and with squares of 48 px.
    "llava": ({"connector": MlpConnector()}, 64, 36),
    "llava, clip": ({"connector": MlpConnector(), "see": "clip"}, 64, 36),
    "llava, tiles": ({"connector": MlpConnector(), "tiling": CATTY}, 64, 36),
    "llava_onevision": ({"connector": MlpConnector(), "is_split": True}, 64, 36),
    "idefics2": ({"connector": PERCEIVER}, 5, 5),
    "idefics2, split": ({"connector": PERCEIVER, "is_split": True}, 5, 5),
    "idefics3": ({"connector": LinearConnector()}, 64, 36),
    "idefics3, split": ({"connector": PixelShuffleConnector(factor=2), "is_split": True}, 16, 9),
    "average": ({"connector": AverageConnector(factor=2)}, 16, 9),
    "two matrices, tiles": (
        {"connector": PixelShuffleConnector(factor=4, layers=2), "tiling": CATTY}, 4, 4
    ),
    "cross-attention": (
        {"connector": MlpConnector(), "fusion": CrossAttentionFusion(every=1, heads=2)}, 1, 1
    ),
    "two encoders": ({"connector": MlpConnector(), "ocr": 3}, 64, 36),
}  # fmt: skip


def made(name: str) -> Assembled:
    how = dict(CASES[name][0])
    if "see" in how:
        how["see"] = vision(how["see"])
    if "ocr" in how:
        how["ocr"] = vision(seed=how["ocr"])
    return made_of(say=language(max_positions=2048), **how)


def towers(model: Any) -> list[Any]:
    inner = getattr(model, "model", model)
    names = ("vision_tower", "vision_model", "ocr_tower")
    return [getattr(inner, name) for name in names if getattr(inner, name, None) is not None]


@pytest.mark.parametrize("image_px", [64, 48])
@pytest.mark.parametrize("name", CASES)
def test_it_grows_and_opens_as_what_it_was(name: str, image_px: int, tmp_path: Path) -> None:
    before = made(name)
    kept = {n: p.clone() for n, p in before.model.named_parameters()}
    one = inputs(before.model, before.processor)
    grown = change_resolution(before.model, before.processor, image_px)
    assert grown.num_tokens == CASES[name][1 if image_px == 64 else 2]
    changed = [n for n, p in before.model.named_parameters() if not same(p, kept[n])]
    assert all(n.endswith("position_embedding.weight") for n in changed)
    assert len(changed) == len(towers(before.model))
    folder = save_vlm(tmp_path / "model", grown.model, grown.processor)
    check_folder(folder, grown)
    # Tokens at the ends of lines, and gates that are closed yet, are none of this helper's.
    is_usual = name not in ("llava_onevision", "cross-attention")
    opened = check_writes(grown, folder) if is_usual else open_vlm(folder)[0]
    assert {tower.config.image_size for tower in towers(opened)} == {image_px}
    anatomy(opened)
    two = inputs(grown.model, grown.processor)
    assert two["pixel_values"].shape[-1] > one["pixel_values"].shape[-1] or "split" in name


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("family", ["siglip", "clip"])
@torch.no_grad()
def test_features_are_those_of_positions_interpolated_by_transformers(family: str) -> None:
    see = vision(family)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = see.model(pixels, interpolate_pos_encoding=True).last_hidden_state
    grown = made_of(MlpConnector(), see)
    change_resolution(grown.model, grown.processor, 64)
    (tower,) = towers(grown.model)
    found = tower(pixels).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)
    # And back again, a table of equal rows stays what it was.
    table = tower.embeddings.position_embedding.weight
    table[:] = table[0].clone()
    change_resolution(grown.model, grown.processor, 32)
    assert torch.allclose(tower.embeddings.position_embedding.weight, table[0].expand(16 + int(
        family == "clip"), -1), atol=1e-6)  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    small = made_of(PixelShuffleConnector(factor=2), say=language(max_positions=160))
    with pytest.raises(RecipeError, match="image_px: found 40, expected a multiple of 16"):
        change_resolution(small.model, small.processor, 40)
    with pytest.raises(RecipeError, match="language_model: has 160 positions, expected"):
        change_resolution(small.model, small.processor, 160)


def test_a_model_and_parts_are_not_named_together() -> None:
    problems = recipe_problems(
        AssembleRecipe, {"name": "x", "model": "m", "vision_encoder": "v", "split": True}
    )
    told = " ".join(map(str, problems))
    for part in ("image_px: found none", "vision_encoder: found v", "split: found True"):
        assert part in told
