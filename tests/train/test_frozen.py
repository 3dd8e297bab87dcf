"""What the table calls frozen stands still: weights, statistics of norms, dropout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.anatomy_families import batch_of, fuyu, make_model
from tests.support.families import make
from torch import nn

from consomme.base.errors import CheckpointError, RecipeError
from consomme.models.anatomy import anatomy
from consomme.models.weights import open_vlm
from consomme.pipelines.train.progress import summary_lines
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.train.cost import SampleShape, num_patches, step_cost
from consomme.train.loop import ScheduleConfig, fit
from consomme.train.modes import set_modes
from consomme.train.neftune import add_noise
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parts import FROZEN, FULL, Part, Trainability, Trained
from consomme.train.trainable import enable_activation_checkpointing, set_trainable

LORA = Part(state="lora", rank=2, alpha=4)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Weights and buffers, also those that are not saved."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def trained_a_step(family: str, choice: Trainability) -> tuple[Any, Trained, set[str], set[str]]:
    """The model after a step, what was marked, and the weights and buffers that moved."""
    model = make_model(family)
    model.config.use_cache = False
    trained = set_trainable(model, choice, (1,), lr=1e-2, weight_decay=0.1)
    before = state_of(model)
    fit(
        Ddp()(model, trained.groups, torch.device("cpu")),
        lambda step: [batch_of(family, step)],
        ScheduleConfig(num_steps=2),
        start=0,
        after_step=lambda report: None,
    )
    moved = {name for name, old in before.items() if not torch.equal(old, state_of(model)[name])}
    buffers = {name for name, _ in model.named_buffers()}
    return model, trained, moved - buffers, moved & buffers


@pytest.mark.parametrize("family", ["fast_vlm", "llama4", "lfm2_vl"])
@pytest.mark.parametrize(
    "choice",
    [
        Trainability(),
        Trainability(projector=FROZEN),
        Trainability(vision_encoder=FULL, language_model=FROZEN, projector=FROZEN, head=FROZEN),
    ],
    ids=["default", "layer", "vision"],
)
def test_what_moves_is_what_the_table_calls_trained(family: str, choice: Trainability) -> None:
    model, trained, moved, moved_buffers = trained_a_step(family, choice)
    parts = anatomy(model)
    states = {(row.part, row.layer): row.state for row in trained.rows}
    for (part, index), state in states.items():
        named = parts.layers[index] if index is not None else getattr(parts, part)
        if state == "frozen":
            assert not moved & set(named), f"{part} {index} is frozen in the table"
        else:
            assert moved & set(named), f"{part} {index} is trained in the table"
    assert not moved_buffers


def test_norms_of_a_frozen_encoder_do_not_drift() -> None:
    """An export has the buffers of the base, so a pass in training has to use them as well."""
    model, _, _, moved_buffers = trained_a_step("fast_vlm", Trainability())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not moved_buffers
    assert not any(norm.training for norm in norms)


def test_norms_of_a_trained_encoder_learn_their_scale_and_keep_their_statistics() -> None:
    choice = Trainability(vision_encoder=FULL)
    model, _, moved, moved_buffers = trained_a_step("fast_vlm", choice)
    norms = [name for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d)]
    assert any(f"{name}.weight" in moved for name in norms)
    assert not moved_buffers


def test_frozen_modules_are_in_eval_mode_and_trained_ones_are_not(tmp_path: Path) -> None:
    model, _ = open_vlm(make("llava", tmp_path / "vlm"))
    set_trainable(model, Trainability(), (1,), lr=1e-3)
    set_modes(model)
    core = model.model
    assert model.training
    assert core.multi_modal_projector.training
    assert not any(module.training for module in core.vision_tower.modules())
    assert not any(module.training for module in core.language_model.layers[0].modules())
    assert all(module.training for module in core.language_model.layers[1].modules())
    # A layer recomputes its activations in training mode only; what is in it stays in eval mode.
    enable_activation_checkpointing(model)
    set_modes(model)
    frozen = core.language_model.layers[0]
    assert frozen.training
    assert not any(module.training for module in frozen.modules() if module is not frozen)


def test_noise_is_added_to_frozen_embeddings(tmp_path: Path) -> None:
    model, _ = open_vlm(make("llava", tmp_path / "vlm"))
    set_trainable(model, Trainability(), (1,), lr=1e-3)
    add_noise(model, 5.0)
    tokens = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        plain = model(**inputs).logits
        set_modes(model)
        assert not model.get_input_embeddings().training
        noisy = model(**inputs).logits
    assert not torch.equal(plain, noisy)


def test_experts_without_adapters_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("qwen3_vl_moe")
    trained = set_trainable(model, Trainability(language_model=LORA), (1,), lr=1e-3)
    experts = sum(
        p.numel()
        for name, p in model.named_parameters()
        if ".layers.1." in name and "experts" in name
    )
    router = model.model.language_model.layers[1].mlp.gate.weight.numel()
    rows = {row.layer: row for row in trained.rows if row.part == "language_model"}
    assert rows[1].num_without_adapters == experts + router
    assert rows[0].num_without_adapters == 0
    assert "2 tensors of experts" in caplog.text
    assert "get no adapters and stay as they are" in caplog.text
    line = next(line for line in summary_lines(trained.rows) if line.startswith("layers 1: lora"))
    assert line.endswith(f"{experts + router:,} parameters of matrices have no adapters")


def test_towers_that_no_picture_passes_are_rows_of_their_own() -> None:
    model = make_model("gemma4")
    trained = set_trainable(model, Trainability(vision_encoder=FULL), (0, 1), lr=1e-3)
    rows = {row.label: row for row in trained.rows}
    assert rows["audio encoder"].state == "frozen"
    assert rows["audio encoder"].num_parameters > 0
    assert not any(p.requires_grad for p in model.model.audio_tower.parameters())
    assert trained.num_parameters == sum(p.numel() for p in model.parameters())


def test_no_advice_freezes_what_would_then_be_trained() -> None:
    """Before, a tower that was not found was trained as `head`, and called frozen."""
    model = make_model("lfm2_vl")
    choice = Trainability(vision_encoder=FROZEN, projector=FROZEN, head=FULL, embeddings=FULL)
    set_trainable(model, choice, (0, 1), lr=1e-3)
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())
    with pytest.raises(CheckpointError, match="cannot tell the vision encoder") as error:
        set_trainable(fuyu(), Trainability(), (0,), lr=1e-3)
    assert "frozen" not in str(error.value)
    named = Trainability(modules={"projector": ("model.vision_embed_tokens",)})
    trained = set_trainable(fuyu(), named, (0,), lr=1e-3)
    assert {row.part for row in trained.rows if row.num_trained} == {"projector", "language_model"}
    no_encoder = Trainability(vision_encoder=FULL, modules=named.modules)
    with pytest.raises(RecipeError, match="has none that could be told from the rest: found proj"):
        set_trainable(fuyu(), no_encoder, (0,), lr=1e-3)


def test_a_recipe_names_modules() -> None:
    recipe = TrainRecipe(
        name="x", model="m", data=(TrainSource(inputs=("a",)),),
        parts={"vision_encoder": "model.tower", "projector": ("model.a", "model.b")},
    )  # fmt: skip
    assert recipe.trainability.modules == {
        "vision_encoder": ("model.tower",),
        "projector": ("model.a", "model.b"),
    }
    with pytest.raises(RecipeError, match=r"parts: found visionencoder, expected .*did you mean"):
        TrainRecipe(
            name="x", model="m", data=(TrainSource(inputs=("a",)),),
            parts={"visionencoder": "model.tower"},
        )  # fmt: skip


def test_tables_per_layer_cost_no_operations() -> None:
    """A table is looked up; only the one that is also the output's matrix is multiplied."""
    model = make_model("gemma4")
    shape = SampleShape(num_tokens=1, num_labelled=1)
    frozen = Trainability(projector=FROZEN, embeddings=FROZEN, head=FROZEN)
    trained = set_trainable(model, frozen, (1,), lr=1e-3)
    text = model.model.language_model
    before = step_cost(model, trained.lowest_layer, shape, num_samples=1).forward
    text.embed_tokens_per_layer.weight = nn.Parameter(torch.zeros(1000, 16), requires_grad=False)
    after = step_cost(model, trained.lowest_layer, shape, num_samples=1).forward
    assert before == after


@pytest.mark.parametrize(
    ("family", "elements"), [("lfm2_vl", 192), ("llama4", 192), ("glm4v", 384)]
)
def test_patches_are_counted_in_the_plan(family: str, elements: int) -> None:
    shape = SampleShape(num_tokens=12, num_labelled=4, num_image_tokens=4, num_pixel_values=3072)
    assert num_patches(make_model(family), shape) == 3072 / elements
