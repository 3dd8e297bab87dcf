"""Layer selections, and that training changes what was selected and not one bit more."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import RecipeError
from consomme.base.sample import Turn
from consomme.models.chat import Chat
from consomme.models.weights import open_vlm
from consomme.train.layers import LAYER_SELECTORS, SparseUniform
from consomme.train.loop import Pace, fit, make_optimizer
from consomme.train.trainable import set_trainable


@pytest.mark.parametrize(
    ("num_layers", "fraction", "expected"),
    [
        # 32 layers, 8 of them: the paper's ids for LLaVA-1.5-7B, counted from 0.
        (32, 0.25, (0, 4, 8, 12, 16, 20, 24, 28)),
        (40, 0.225, (0, 4, 8, 13, 17, 22, 26, 31, 35)),
        (12, 0.25, (0, 4, 8)),
        (13, 0.25, (0, 3, 6, 9)),
        (4, 0.01, (0,)),
        (1, 0.25, (0,)),
        (5, 1.0, (0, 1, 2, 3, 4)),
    ],
)
def test_sparse_uniform(num_layers: int, fraction: float, expected: tuple[int, ...]) -> None:
    selector = LAYER_SELECTORS.build({"name": "sparse_uniform", "fraction": fraction})
    assert selector(num_layers) == expected


def test_a_quarter_is_the_default_and_all_is_all() -> None:
    assert LAYER_SELECTORS.build({"name": "sparse_uniform"})(32) == tuple(range(0, 32, 4))
    assert LAYER_SELECTORS.build({"name": "all"})(7) == tuple(range(7))


def test_the_count_is_rounded_up_from_the_decimal_number() -> None:
    # In floats 0.07 * 100 is 7.000000000000001.
    assert len(SparseUniform(fraction=0.07)(100)) == 7
    assert len(SparseUniform(fraction=0.0701)(100)) == 8


@given(num_layers=st.integers(1, 200), percent=st.integers(1, 100))
def test_gaps_are_even(num_layers: int, percent: int) -> None:
    chosen = SparseUniform(fraction=percent / 100)(num_layers)
    assert len(chosen) == -(-percent * num_layers // 100)
    assert list(chosen) == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < num_layers
    gaps = {b - a for a, b in zip(chosen, (*chosen[1:], num_layers), strict=True)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(RecipeError, match=r"fraction: found .*expected a share in \(0, 1\]"):
        SparseUniform(fraction=fraction)


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'sparse_uniform'"):
        LAYER_SELECTORS.build({"name": "sparse_unifrm"})


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train_once(folder: Path, layers: tuple[int, ...], **parts: str) -> tuple[set[str], Any, int]:
    """One step with weight decay; returns the changed tensors, the table, and the layer size."""
    model, processor = open_vlm(folder)
    chat = Chat(model, processor)
    table = set_trainable(model, layers=layers, **parts)  # type: ignore[arg-type]
    before = snapshot(model)
    turns = [Turn(role="user", content="describe the image.")]
    rows = [
        chat.encode((*turns, Turn(role="assistant", content=text)), has_image=True)
        for text in ("a red circle", "a blue square at the top left")
    ]
    batch = chat.collate(rows)
    torch.manual_seed(0)
    batch["pixel_values"] = torch.randn(2, 3, 32, 32)
    pace = Pace(num_steps=1, lr=1e-3, weight_decay=0.1)
    fit(
        model,
        make_optimizer(model, pace),
        lambda step: [batch],
        pace,
        start=0,
        after_step=lambda report: None,
    )
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    return changed, table, sum(p.numel() for p in model.parameters())


def test_one_step_changes_the_chosen_layers_and_the_projector_only(debug_vlm: Path) -> None:
    layers = SparseUniform()(12)
    changed, table, total = train_once(debug_vlm, layers, vision_encoder="frozen", projector="full")
    model, _ = open_vlm(debug_vlm)
    expected = {
        name
        for name, _ in model.named_parameters()
        if "multi_modal_projector" in name
        or any(f"language_model.layers.{index}." in name for index in layers)
    }
    assert layers == (0, 4, 8)
    assert changed == expected

    config = model.config
    width, ffn, seen = (
        config.text_config.hidden_size,
        config.text_config.intermediate_size,
        config.vision_config.hidden_size,
    )
    # Four attention matrices, three of the feed-forward, two norms; no biases in Llama.
    per_layer = 4 * width * width + 3 * width * ffn + 2 * width
    projector = seen * width + width + width * width + width
    assert table.num_trainable == 3 * per_layer + projector
    assert table.num_parameters == total
    assert dict((part, count) for part, count, _ in table.rows)["layer 4"] == per_layer
    assert [row[0] for row in table.rows] == [
        "vision encoder",
        "projector",
        *[f"layer {index}" for index in range(12)],
        "embeddings, norm and head",
    ]


def test_all_layers_train_the_whole_language_model(debug_vlm: Path) -> None:
    everything = tuple(range(12))
    changed, table, total = train_once(
        debug_vlm, everything, vision_encoder="frozen", projector="full"
    )
    vision = next(row for row in table.rows if row[0] == "vision encoder")
    assert vision[1] == 0
    assert table.num_trainable == total - vision[2]
    assert not any("vision_tower" in name for name in changed)
    assert any("lm_head" in name for name in changed)
    assert any("embed_tokens" in name for name in changed)


def test_parts_can_be_trained_alone(debug_vlm: Path) -> None:
    changed, _, _ = train_once(debug_vlm, (), vision_encoder="frozen", projector="full")
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
    changed, _, _ = train_once(debug_vlm, (), vision_encoder="full", projector="frozen")
    assert changed
    assert all("vision_tower" in name for name in changed)


def test_training_nothing_is_an_error_that_says_what_to_do(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    with pytest.raises(RecipeError, match=r"nothing would be trained.*select layers or set proj"):
        set_trainable(model, layers=(), vision_encoder="frozen", projector="frozen")
    with pytest.raises(RecipeError, match=r"layers: \[12, 40\] do not exist.*0 to 11"):
        set_trainable(model, layers=(0, 12, 40), vision_encoder="frozen", projector="full")


def test_choosing_again_forgets_the_first_choice(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    set_trainable(model, layers=range(12), vision_encoder="full", projector="full")
    table = set_trainable(model, layers=(3,), vision_encoder="frozen", projector="frozen")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".layers.3." in name and "language_model" in name for name in trained)
    assert table.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
