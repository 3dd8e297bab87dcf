"""Assemblies as classes of transformers are their parts, bit for bit, and load without consomme."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.assembled import (
    PERCEIVER,
    check_writes,
    inputs,
    language,
    made_of,
    text_logits,
    vision,
)

from consomme.assemble.build import AssemblyPlan, choose_class
from consomme.assemble.check import check_folder
from consomme.assemble.choices import (
    AutoregressiveFusion,
    AverageConnector,
    Connector,
    CrossAttentionFusion,
    LinearConnector,
    MlpConnector,
    PixelShuffleConnector,
)
from consomme.base.errors import CheckpointError, RecipeError
from consomme.models.anatomy import anatomy
from consomme.models.weights import save_vlm
from consomme.train.parts import FROZEN, Part, Trainability
from consomme.train.trainable import set_trainable

CONNECTORS: dict[str, tuple[Connector, str, int]] = {
    "mlp": (MlpConnector(), "llava", 16),
    "linear": (LinearConnector(), "idefics3", 16),
    "pixel_shuffle": (PixelShuffleConnector(factor=2), "idefics3", 4),
    "perceiver": (PERCEIVER, "idefics2", 5),
}
FAMILIES = ("llama", "qwen2", "mistral", "gpt_neox")


def pairs() -> list[Any]:
    """All pairs of a connector and a family; one of each is quick."""
    found = []
    for number, name in enumerate(CONNECTORS):
        for place, family in enumerate(FAMILIES):
            marks = () if number == place else (pytest.mark.long,)
            found.append(pytest.param(name, family, marks=marks, id=f"{name}-{family}"))
    return found


@pytest.mark.parametrize(("name", "family"), pairs())
def test_it_is_its_parts_and_opens_as_what_it_was(name: str, family: str, tmp_path: Path) -> None:
    connector, kind, num_tokens = CONNECTORS[name]
    say, see = language(family, tied=family == "qwen2"), vision()
    num_words = len(say.tokenizer)
    expected = text_logits(say.model)
    of_language = {n: t.clone() for n, t in say.model.base_model.state_dict().items()}
    of_vision = {n: t.clone() for n, t in see.model.state_dict().items()}
    made = made_of(connector, see, say)
    assert (made.kind, made.num_tokens, made.reasons) == (kind, num_tokens, [])
    # What the parts know is untouched: texts without images, and every tensor.
    found = text_logits(made.model)
    assert torch.equal(found[..., : expected.shape[-1]], expected)
    stored = made.model.model.state_dict()
    rows = made.model.get_input_embeddings().weight
    assert rows.shape[0] % 64 == 0
    for weights, prefixes in (
        (of_language, ("language_model.", "text_model.")),
        (of_vision, ("vision_tower.", "vision_model.")),
    ):
        for tensor_name, tensor in weights.items():
            ours = next(stored[p + tensor_name] for p in prefixes if p + tensor_name in stored)
            assert torch.equal(ours[: len(tensor)], tensor)
    head = made.model.get_output_embeddings().weight
    assert (head is rows) == (family == "qwen2")
    for matrix in (rows, head):
        mean = matrix[:num_words].float().mean(dim=0)
        assert torch.allclose(matrix[num_words:], mean.expand_as(matrix[num_words:]))
    assert int(found.argmax(-1).max()) < num_words
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    check_folder(folder, made)
    check_writes(made, folder)


def test_a_changed_tensor_in_the_folder_is_found(tmp_path: Path) -> None:
    made = made_of(MlpConnector())
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    with torch.no_grad():
        made.model.lm_head.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the tensor"):
        check_folder(folder, made)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_projector_sees_the_encoders_features(family: str) -> None:
    see = vision(family)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = see.model(pixels, output_hidden_states=True)
        made = made_of(MlpConnector(), see)
        before_last = features.hidden_states[-1][:, 1:] if family == "clip" else None
        expected = features.hidden_states[-1] if before_last is None else before_last
        found = made.model.get_image_features(
            pixels, -1, made.model.config.vision_feature_select_strategy
        )
        assert torch.equal(
            torch.stack(list(found.pooler_output)), made.model.model.multi_modal_projector(expected)
        )


@pytest.mark.parametrize("side", [2, 3, 5, 7, 12])
def test_a_siglip_has_the_same_features_inside_of_idefics(side: int) -> None:
    """Its positions are looked up by fractions of the image there."""
    see = vision(image_px=8 * side)
    pixels = torch.rand(2, 3, 8 * side, 8 * side)
    with torch.no_grad():
        expected = see.model(pixels).last_hidden_state
        made = made_of(LinearConnector(), see)
        found = made.model.model.vision_model(pixels).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", CONNECTORS)
@pytest.mark.parametrize("trained", ["projector", "vision_encoder", "language_model"])
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, trained: str) -> None:
    made = made_of(CONNECTORS[name][0])
    states = {part: FROZEN for part in ("projector", "vision_encoder", "language_model")}
    states |= {trained: Part(state="full"), "embeddings": FROZEN, "head": FROZEN}
    set_trainable(made.model, Trainability(**states), range(3), lr=1e-3)
    check_gradients(made, trained)


def check_gradients(made: Any, trained: str) -> None:
    row = inputs(made.model, made.processor)
    made.model(**row, labels=row["input_ids"]).loss.backward()
    found = anatomy(made.model)
    parts = {
        "projector": found.projector,
        "vision_encoder": found.vision_encoder,
        "language_model": {n: p for layer in found.layers for n, p in layer.items()},
    }
    reached = {
        n for n, p in made.model.named_parameters() if p.grad is not None and bool(p.grad.any())
    }
    # The last norm of an encoder whose features are taken before it has no gradient.
    assert {n for n in parts[trained] if "post_layernorm" not in n} <= reached
    assert reached <= set(parts[trained])


def test_a_head_that_changes_its_logits_is_no_standard_class() -> None:
    """A soft cap shows at large logits only."""
    plan = AssemblyPlan(connector=MlpConnector(), fusion=CrossAttentionFusion())
    for family, said in (
        ("gemma2", "changes its logits"),
        ("cohere", "changes its logits"),
        ("phi", "has a bias"),
    ):
        kind, reasons = choose_class(plan, vision(), language(family))
        assert kind == "consomme_vlm"
        assert len(reasons) == 2
        assert said in reasons[1]
    (reason,) = choose_class(
        AssemblyPlan(connector=MlpConnector(), fusion=AutoregressiveFusion()),
        vision(),
        language("gpt2", tied=True),
    )[1]
    assert "embed_tokens" in reason


@pytest.mark.parametrize(
    ("connector", "see", "said"),
    [
        (LinearConnector(), {"family": "clip"}, "their encoder is a SigLIP"),
        (PixelShuffleConnector(factor=3), {}, "not a multiple of factor=3"),
        (PixelShuffleConnector(layers=2), {}, "in this form"),
        (AverageConnector(), {}, "in this form"),
    ],
)
def test_what_no_standard_class_holds_is_told(connector: Any, see: Any, said: str) -> None:
    kind, reasons = choose_class(
        AssemblyPlan(connector=connector, fusion=AutoregressiveFusion()), vision(**see), language()
    )
    assert kind == "consomme_vlm"
    assert said in "; ".join(reasons)


def test_an_image_has_to_fit_into_the_language_model() -> None:
    with pytest.raises(RecipeError, match=r"has 70 positions, expected 80 at least.*16 tokens"):
        made_of(MlpConnector(), say=language(max_positions=70))


def test_split_images_take_five_times_the_tokens() -> None:
    for is_split, count in ((False, 5), (True, 25)):
        made = made_of(PERCEIVER, is_split=is_split, image_px=64)
        row = inputs(made.model, made.processor)
        assert int((row["input_ids"] == made.model.config.image_token_id).sum()) == count
        with torch.no_grad():
            assert made.model(**row).logits.isfinite().all()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_grid_of_tiles_is_a_llava_onevision(family: str, tmp_path: Path) -> None:
    say, see = language("qwen2"), vision(family)
    expected = text_logits(say.model)
    made = made_of(MlpConnector(), see, say, is_split=True, image_px=96)
    assert (made.kind, made.reasons) == ("llava_onevision", [])
    assert len(made.model.config.image_grid_pinpoints) == 9
    assert torch.equal(text_logits(made.model)[..., : expected.shape[-1]], expected)
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    check_folder(folder, made)
    counts = []
    for number in (0, 1):
        row = inputs(made.model, made.processor, number)
        counts.append(int((row["input_ids"] == made.model.config.image_token_id).sum()))
        with torch.no_grad():
            assert made.model(**row).logits.isfinite().all()
    # 64 × 48 pixels on 2 × 2 tiles, 40 × 72 on 2 × 3: what is padded of the grid is left out.
    assert all(count > 16 for count in counts)
    found = anatomy(made.model)
    assert any("image_newline" in name for name in found.projector)


def test_a_language_model_without_template_gets_a_plain_one() -> None:
    made = made_of(MlpConnector(), say=language(has_template=False))
    text = made.processor.tokenizer.decode(inputs(made.model, made.processor)["input_ids"][0])
    assert text == f"### User:\n{'<image>' * 16}what is it?\n### Assistant:\n"


def test_an_ordinary_token_of_that_name_is_refused() -> None:
    say = language()
    # It is a special token of our own tokenizer, and is kept.
    assert made_of(MlpConnector(), say=say).new_tokens == []
    say = language()
    say.tokenizer.add_tokens(["<fake_token_around_image>"])
    with pytest.raises(CheckpointError, match="is an ordinary token"):
        made_of(PERCEIVER, say=say)
