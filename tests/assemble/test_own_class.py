"""Our own class: other connectors, two encoders, cross-attention, and any language model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.assembled import (
    PERCEIVER,
    check_writes,
    enlarge,
    inputs,
    language,
    made_of,
    text_logits,
    vision,
)
from torch.nn import functional

from consomme.assemble.check import check_folder
from consomme.assemble.choices import (
    AverageConnector,
    Connector,
    CrossAttentionFusion,
    LinearConnector,
    MlpConnector,
    PixelShuffleConnector,
)
from consomme.base.errors import RecipeError
from consomme.base.sample import ImageRef, Turn
from consomme.models.anatomy import anatomy
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.consomme_vlm.connectors import AveragePool, Perceiver, join_patches
from consomme.models.selfcheck import make_images
from consomme.models.weights import open_vlm, save_vlm
from consomme.train.batch_check import check_batches

CROSS = CrossAttentionFusion(every=2)
CONNECTORS: dict[str, tuple[Connector, int]] = {
    "linear": (LinearConnector(), 16),
    "average": (AverageConnector(factor=3), 4),
    "pixel_shuffle": (PixelShuffleConnector(factor=3, layers=2), 4),
    "perceiver": (PERCEIVER, 5),
}
FAMILIES = ("llama", "qwen2", "mistral", "gpt_neox", "gpt2", "gemma2", "phi", "opt")


def open_gates(made: Any) -> Any:
    """Let images through the gated blocks."""
    with torch.no_grad():
        for block in getattr(made.model, "cross_blocks", ()):
            block.attention_gate.fill_(0.8)
            block.mlp_gate.fill_(0.5)
            enlarge(block)
    return made


def cells() -> list[Any]:
    quick = {("linear", "phi", True), ("average", "gpt2", False), ("pixel_shuffle", "gemma2", True)}
    quick |= {("perceiver", "gpt_neox", True), ("perceiver", "llama", False)}
    return [
        pytest.param(
            *cell, marks=() if cell in quick else (pytest.mark.long,), id="-".join(map(str, cell))
        )
        for cell in (
            (name, family, crosses)
            for name in CONNECTORS
            for family in FAMILIES
            for crosses in (False, True)
        )
    ]


@pytest.mark.parametrize(("name", "family", "crosses"), cells())
def test_it_is_its_parts_and_opens_as_what_it_was(
    name: str, family: str, crosses: bool, tmp_path: Path
) -> None:
    connector, num_tokens = CONNECTORS[name]
    say, see = language(family, tied=family in ("gpt2", "gemma2")), vision("clip")
    expected = text_logits(say.model)
    of_vision = {n: t.clone() for n, t in see.model.state_dict().items()}
    plan = {"fusion": CROSS} if crosses else {}
    made = made_of(connector, see, say, **plan)
    assert (made.kind, made.num_tokens) == ("consomme_vlm", 1 if crosses else num_tokens)
    assert made.reasons
    assert torch.equal(text_logits(made.model)[..., : expected.shape[-1]], expected)
    for tensor_name, tensor in of_vision.items():
        assert torch.equal(made.model.vision_tower.state_dict()[tensor_name], tensor)
    open_gates(made)
    # Texts without images never pass through the blocks, open or not.
    assert torch.equal(text_logits(made.model)[..., : expected.shape[-1]], expected)
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    check_folder(folder, made)
    opened = check_writes(made, folder)
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) == (
        family in ("gpt2", "gemma2")
    )


def test_closed_gates_leave_the_language_model_as_it_is() -> None:
    made = made_of(PERCEIVER, fusion=CROSS)
    row = inputs(made.model, made.processor)
    with torch.no_grad():
        seen = made.model(**row).logits
        blind = made.model(**{n: v for n, v in row.items() if n != "pixel_values"}).logits
    assert torch.equal(seen, blind)


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("trained", ["projector", "vision_encoder", "language_model"])
def test_gradients_reach_what_is_trained_and_nothing_else(trained: str, crosses: bool) -> None:
    from tests.assemble.test_standard import check_gradients

    from consomme.train.parts import FROZEN, Part, Trainability
    from consomme.train.trainable import set_trainable

    fusion = {"fusion": CROSS} if crosses else {}
    made = open_gates(made_of(AverageConnector(), **fusion))
    states = dict.fromkeys(("projector", "vision_encoder", "language_model"), FROZEN)
    states |= {trained: Part(state="full"), "embeddings": FROZEN, "head": FROZEN}
    set_trainable(made.model, Trainability(**states), range(3), lr=1e-3)
    check_gradients(made, trained)


def test_the_gated_blocks_belong_to_the_projector() -> None:
    made = made_of(PERCEIVER, fusion=CROSS)
    found = anatomy(made.model)
    assert {n.partition(".")[0] for n in found.projector} == {"connector", "cross_blocks"}
    assert not found.sides


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    made = open_gates(made_of(PERCEIVER, fusion=CROSS))
    row = inputs(made.model, made.processor)
    made.model.train()
    grads = []
    for checkpoints in (False, True):
        if checkpoints:
            made.model.gradient_checkpointing_enable({"use_reentrant": False})
        made.model.zero_grad()
        made.model(**row, labels=row["input_ids"], use_cache=False).loss.backward()
        grads.append(
            {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}
        )
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-6) for n in grads[0])


def two_images() -> tuple[list[Turn], list[Any]]:
    turns = [
        Turn(role="user", content=(ImageRef(0), "what is it?")),
        Turn(role="assistant", content="a circle"),
        Turn(role="user", content=("and in", ImageRef(1), "?")),
        Turn(role="assistant", content="a square"),
    ]
    return turns, make_images()


@torch.no_grad()
def test_a_word_sees_the_images_before_it_and_none_after() -> None:
    made = open_gates(made_of(LinearConnector(), fusion=CROSS))
    chat = chat_encoder_for(made.model.config, made.processor)
    turns, images = two_images()
    rows = [chat.encode(turns, some) for some in (images, [images[0], images[0]], images[::-1])]
    batcher = Batcher(made.model, chat.tokenizer)
    first, other_second, other_first = (
        made.model(**{k: v for k, v in batcher.collate([row]).items() if k != "labels"}).logits[0]
        for row in rows
    )
    marks = [t for t, i in enumerate(rows[0].input_ids) if i == made.model.config.image_token_id]
    assert len(marks) == 2
    assert torch.equal(first[: marks[1]], other_second[: marks[1]])
    assert not torch.allclose(first[marks[1] :], other_second[marks[1] :], atol=1e-4)
    assert torch.equal(first[: marks[0]], other_first[: marks[0]])
    assert not torch.allclose(
        first[marks[0] : marks[1]], other_first[marks[0] : marks[1]], atol=1e-4
    )


@pytest.mark.parametrize("crosses", [False, True])
@torch.no_grad()
def test_batches_and_packed_rows_are_what_each_row_is_alone(crosses: bool) -> None:
    fusion = {"fusion": CROSS} if crosses else {}
    made = open_gates(made_of(PixelShuffleConnector(factor=3), vision("clip"), **fusion))
    chat = chat_encoder_for(made.model.config, made.processor)
    turns, images = two_images()
    user, answer = turns[0], turns[1]
    rows = [
        chat.encode(turns, images),
        chat.encode([replace(user, content="what is it?"), answer]),
        chat.encode([user, answer], [images[1]]),
    ]
    batcher = Batcher(made.model, chat.tokenizer)
    found = check_batches(made.model, chat, batcher, packs=True)
    assert not found.failed, found
    alone = [made.model(**_unlabelled(batcher.collate([row]))).logits[0] for row in rows]
    for side in ("left", "right"):
        batch = _unlabelled(batcher.collate(rows, padding_side=side))
        together = made.model(**batch).logits
        for row, one, mask in zip(together, alone, batch["attention_mask"], strict=True):
            assert torch.allclose(row[mask.bool()], one, atol=1e-4)
    packed = made.model(**_unlabelled(batcher.pack(rows))).logits[0]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)


def _unlabelled(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}


@torch.no_grad()
def test_two_encoders_are_averaged(tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    features = {}
    for share in (0.0, 0.25, 1.0):
        made = made_of(
            MlpConnector(), vision("clip", 5), ocr=vision("clip", 6), general_weight=share
        )
        features[share] = made.model.get_image_features(pixels)
        assert made.num_tokens == 16
    general, ocr = (features[share].last_hidden_state for share in (1.0, 0.0))
    only = vision("clip", 5).model(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    assert torch.equal(general, only)
    assert not torch.allclose(general, ocr)
    assert torch.allclose(features[0.25].last_hidden_state, 0.25 * general + 0.75 * ocr, atol=1e-6)
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    opened, _ = open_vlm(folder)
    assert opened.config.general_weight == 1.0
    assert len(anatomy(opened).vision_encoder) == 2 * len(vision("clip").model.state_dict())


@pytest.mark.parametrize(
    ("ocr", "said"),
    [
        ({"family": "siglip"}, "model_type=siglip_vision_model, expected clip_vision_model"),
        ({"width": 32}, "hidden_size=32, expected 24"),
        ({"image_px": 64}, "image_size=64, expected 32"),
    ],
)
def test_encoders_of_different_shape_are_refused(ocr: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made_of(MlpConnector(), vision("clip"), ocr=vision(**{"family": "clip", **ocr}))


def test_tiles_without_a_class_that_has_them_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"split: LLaVA-OneVision, Idefics2 and.*SigLIP"):
        made_of(PERCEIVER, vision("clip"), is_split=True)


@pytest.mark.parametrize(
    ("fusion", "said"),
    [
        (CrossAttentionFusion(heads=5), "fusion.heads: found 5"),
        (CrossAttentionFusion(every=4), "fusion.every: found 4, expected 1 to 3"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(fusion: CrossAttentionFusion, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made_of(MlpConnector(), fusion=fusion)


def test_a_shuffle_joins_neighbours_of_grids_that_are_not_square() -> None:
    rows, columns = 3, 4
    patches = torch.arange(rows * columns, dtype=torch.float32).reshape(1, -1, 1) + 1
    joined, grid = join_patches(patches, (rows, columns), 2)
    assert grid == (2, 2)
    assert joined[0].tolist() == [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 0, 0], [11, 12, 0, 0]]
    same, grid = join_patches(patches, (rows, columns), 1)
    assert grid == (3, 4)
    assert torch.equal(same, patches)


@torch.no_grad()
def test_averages_at_the_edge_are_of_what_is_there() -> None:
    pool = AveragePool(1, 1, factor=2)
    for matrix in (pool.map.linear_1, pool.map.linear_2):
        matrix.weight.fill_(1)
        matrix.bias.zero_()
    patches = torch.arange(12, dtype=torch.float32).reshape(1, -1, 1)
    expected = functional.gelu(torch.tensor([2.5, 4.5, 8.5, 10.5]))
    assert torch.allclose(pool(patches, (3, 4))[0, :, 0], expected)


@torch.no_grad()
def test_a_perceiver_makes_as_many_tokens_of_any_grid() -> None:
    torch.manual_seed(0)
    resampler = Perceiver(8, 16, latents=5, depth=2, heads=2, head_dim=8, kv_heads=1)
    found = [resampler(torch.rand(2, h * w, 8), (h, w)) for h, w in ((1, 1), (4, 4), (3, 7))]
    assert {tuple(one.shape) for one in found} == {(2, 5, 16)}
    # Latents differ, so tokens do.
    assert not torch.allclose(found[2][:, 0], found[2][:, 1], atol=1e-3)


@torch.no_grad()
def test_images_that_are_not_square_have_tokens_by_their_grid() -> None:
    made = made_of(AverageConnector(), vision("clip"))
    for height, width, count in ((32, 32, 4), (16, 48, 3), (24, 40, 6)):
        features = made.model.get_image_features(torch.rand(1, 3, height, width))
        assert features.pooler_output.shape == (1, count, 32)


def test_a_wrong_number_of_placeholders_is_refused() -> None:
    made = made_of(AverageConnector(), vision("clip"))
    row = inputs(made.model, made.processor)
    with pytest.raises(ValueError, match="found 4 placeholders of images, expected 8"):
        made.model(**{**row, "pixel_values": torch.cat([row["pixel_values"]] * 2)})


CATTY = {"name": "catty", "tile_px": 32, "max_tiles": 4}


@pytest.mark.parametrize(
    ("connector", "kind", "plan"),
    [
        (MlpConnector(), "llava", {}),
        (PixelShuffleConnector(layers=2), "consomme_vlm", {}),
        (PERCEIVER, "consomme_vlm", {"fusion": CROSS}),
    ],
)
def test_images_are_cut_by_a_tiling(
    connector: Any, kind: str, plan: dict[str, Any], tmp_path: Path
) -> None:
    made = made_of(connector, tiling=CATTY, **plan)
    open_gates(made)
    assert made.kind == kind
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    check_folder(folder, made)
    check_writes(made, folder)
    grids = made.processor.image_processor.tiling_with()
    for number, image in enumerate(make_images()):
        row = inputs(made.model, made.processor, number)
        count = int((row["input_ids"] == made.model.config.image_token_id).sum())
        assert count == grids.plan(*image.size).num_encoded * made.num_tokens
        assert len(row["pixel_values"]) == grids.plan(*image.size).num_encoded


@pytest.mark.parametrize(
    ("tiling", "said"),
    [
        ({"name": "catty"}, "tiling.tile_px: found 336, expected 32"),
        ({"name": "native", "tile_px": 32, "patch_px": 8}, "keeps shapes"),
    ],
)
def test_tilings_that_do_not_fit_are_refused(tiling: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made_of(MlpConnector(), tiling=tiling)


def assemblies() -> dict[str, Any]:
    return {
        "idefics3": lambda: made_of(PixelShuffleConnector(), is_split=True, image_px=64),
        "onevision": lambda: made_of(MlpConnector(), say=language("qwen2"), is_split=True),
        "idefics2": lambda: made_of(PERCEIVER, is_split=True),
        "own": lambda: made_of(AverageConnector(), vision("clip"), language("gpt_neox")),
        "two encoders": lambda: made_of(MlpConnector(), vision("clip"), ocr=vision("clip", 5)),
        "cross": lambda: open_gates(made_of(PERCEIVER, vision("clip"), fusion=CROSS)),
        "cross gemma2": lambda: open_gates(
            made_of(PERCEIVER, say=language("gemma2"), fusion=CROSS)
        ),
        "catty": lambda: made_of(PixelShuffleConnector(layers=2), tiling=CATTY),
        "cross catty": lambda: open_gates(made_of(PERCEIVER, fusion=CROSS, tiling=CATTY)),
    }


@pytest.mark.parametrize("verb", ["score", "anatomy", "train", "pack", "write"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "cross" else (pytest.mark.long,))
        for name in assemblies()
    ],
)
def test_verbs_give_what_plain_forward_passes_give(name: str, verb: str, tmp_path: Path) -> None:
    """As for the families of the table: scores, gradients by part, losses and texts."""
    from tests.support.family_table import OK, run_cell

    made = assemblies()[name]()
    cell = run_cell(verb, save_vlm(tmp_path / "model", made.model, made.processor))
    assert (cell.state, cell.detail) == (OK, "")
