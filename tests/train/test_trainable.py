"""Training changes exactly the selected parameters, in every model family and state."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batches_of
from tests.support.families import FAMILIES, hf, make

from consomme.base.errors import RecipeError
from consomme.models.adapters import merge_adapter, open_adapter
from consomme.models.anatomy import anatomy
from consomme.models.lora import merge_lora, save_adapter
from consomme.models.weights import open_vlm, save_vlm
from consomme.pipelines.train.progress import summary_lines
from consomme.train.layers import LAYER_SELECTORS, SparseUniform
from consomme.train.loop import ScheduleConfig, fit
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parallel.strategy import make_optimizer
from consomme.train.parts import FROZEN, FULL, Part, Trainability, Trained, summarise
from consomme.train.trainable import (
    disable_kv_cache,
    enable_activation_checkpointing,
    set_trainable,
)

LORA = Part(state="lora", rank=4, alpha=8)
DORA = Part(state="dora", rank=4, alpha=8)

STRATEGIES: list[dict[str, Any]] = [
    {"name": "all"},
    {"name": "sparse_uniform"},
    {"name": "consecutive", "where": "bottom"},
    {"name": "consecutive", "where": "mid_bottom"},
    {"name": "consecutive", "where": "mid_top"},
    {"name": "consecutive", "where": "top"},
    {"name": "hybrid"},
    {"name": "every", "k": 5},
    {"name": "listed", "ids": [2, -1]},
    {"name": "by_score", "measure": "block_influence"},
]


def one_step(model: Any, processor: Any, trained: Trained) -> None:
    """With weight decay, which also moves what has no gradient."""
    fit(
        Ddp()(model, trained.groups, torch.device("cpu")),
        batches_of(model, processor),
        ScheduleConfig(num_steps=1),
        start=0,
        after_step=lambda report: None,
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    """By the names of the bare model; adapters left out."""
    return {
        name.replace(".base_layer.", "."): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    }


def changed_after_a_step(
    folder: Path, choice: Trainability, layers: tuple[int, ...]
) -> tuple[set[str], set[str], Trained, Any]:
    """What one step and the merging of adapters changed, and what it should have."""
    model, processor = open_vlm(folder)
    parts = anatomy(model)
    before = weights(model)
    trained = set_trainable(model, choice, layers, lr=1e-2, weight_decay=0.1)
    one_step(model, processor, trained)
    if trained.adapters:
        unmerged = weights(model)
        full = {
            name
            for name, part in choice.resolved(is_whole=len(layers) == len(parts.layers)).items()
            if part.state == "full"
        }
        for name, old in before.items():
            if not _is_in(parts, name, full, layers):
                assert torch.equal(unmerged[name], old), f"adapters must leave {name} alone"
    merge_lora(model)
    after = weights(model)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained_parts = {
        name
        for name, part in choice.resolved(is_whole=len(layers) == len(parts.layers)).items()
        if part.state != "frozen"
    }
    allowed = {name for name in before if _is_in(parts, name, trained_parts, layers)}
    return changed, allowed, trained, model


def _is_in(parts: Any, name: str, names: set[str], layers: tuple[int, ...]) -> bool:
    return any(name in getattr(parts, part) for part in names if part != "language_model") or (
        "language_model" in names and any(name in parts.layers[index] for index in layers)
    )


@pytest.mark.parametrize("state", ["full", "lora", "dora"])
@pytest.mark.parametrize("node", STRATEGIES, ids=lambda node: "-".join(map(str, node.values())))
def test_unselected_tensors_keep_their_bits(
    debug_vlm: Path, node: dict[str, Any], state: str
) -> None:
    part = {"full": FULL, "lora": LORA, "dora": DORA}[state]
    layers = LAYER_SELECTORS.build(node)(12, [float(n) for n in range(12)])
    choice = Trainability(language_model=part)
    changed, allowed, trained, model = changed_after_a_step(debug_vlm, choice, layers)
    assert changed <= allowed
    matrices = {name for name in allowed if dict(model.named_parameters())[name].ndim == 2}
    assert matrices <= changed, "every matrix of a chosen layer moves"
    if state == "full":
        assert changed == allowed
    rows = {row.layer: row for row in trained.rows if row.part == "language_model"}
    assert {index for index, row in rows.items() if row.num_trained} == set(layers)
    assert {row.state for index, row in rows.items() if index not in layers} <= {"frozen"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", [FULL, LORA], ids=["full", "lora"])
def test_every_family_trains_a_layer_and_its_projector(
    tmp_path: Path, family: str, part: Part
) -> None:
    folder = make(family, tmp_path / family)
    choice = Trainability(language_model=part)
    changed, allowed, trained, model = changed_after_a_step(folder, choice, (1,))
    assert changed <= allowed
    parts = anatomy(model)
    assert changed & set(parts.layers[1])
    assert changed & set(parts.projector)
    assert trained.num_parameters == sum(p.numel() for p in model.parameters())

    saved = save_vlm(tmp_path / "model", model, open_vlm(folder)[1])
    again, _ = open_vlm(saved)
    stored = weights(again)
    for name, tensor in weights(model).items():
        assert torch.equal(stored[name], tensor), name


def test_the_table_adds_up_to_the_closed_form(debug_vlm: Path) -> None:
    layers = SparseUniform()(12)
    assert layers == (0, 4, 8)
    _, _, trained, model = changed_after_a_step(debug_vlm, Trainability(), layers)
    config = model.config
    width, ffn, seen = (
        config.text_config.hidden_size,
        config.text_config.intermediate_size,
        config.vision_config.hidden_size,
    )
    # Four attention matrices, three of the feed-forward, two norms; no biases in Llama.
    per_layer = 4 * width * width + 3 * width * ffn + 2 * width
    projector = seen * width + width + width * width + width
    assert trained.num_trained == 3 * per_layer + projector
    assert trained.num_parameters == sum(p.numel() for p in model.parameters())
    labels = [row.label for row in trained.rows]
    assert labels == [
        "vision encoder",
        "projector",
        *[f"layer {index}" for index in range(12)],
        "embeddings",
        "head",
    ]
    row = trained.rows[labels.index("layer 4")]
    assert (row.num_tensors, row.num_trained, row.num_parameters) == (9, per_layer, per_layer)
    assert (row.state, row.lr) == ("full", 1e-2)


def test_an_adapter_has_rank_times_both_sides(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    trained = set_trainable(
        model, Trainability(language_model=LORA, projector=FROZEN), (3,), lr=1e-3
    )
    text = model.config.text_config
    width, ffn = text.hidden_size, text.intermediate_size
    assert trained.num_trained == 4 * (4 * 2 * width + 3 * (width + ffn))
    assert trained.lowest_layer == 3
    assert trained.adapters == ("language_model",)
    trainable_names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable_names
    assert all(".layers.3." in name and "lora_" in name for name in trainable_names)


def test_parts_have_their_own_pace(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    trained = set_trainable(
        model,
        Trainability(
            projector=Part(state="full", lr=2e-5, weight_decay=0.5),
            vision_encoder=Part(state="lora", rank=2, lr=1e-6),
            embeddings=FULL,
        ),
        (0, 11),
        lr=1e-4,
        weight_decay=0.1,
    )
    optimizer = make_optimizer(model, trained.groups)
    paces = {(g["peak_lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert paces == {(1e-6, 0.1), (2e-5, 0.5), (2e-5, 0.0), (1e-4, 0.1), (1e-4, 0.0)}
    assert trained.lowest_layer is None
    assert {row.label: row.lr for row in trained.rows if row.lr} == {
        "vision encoder": 1e-6,
        "projector": 2e-5,
        "layer 0": 1e-4,
        "layer 11": 1e-4,
        "embeddings": 1e-4,
    }
    num = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert (
        num == trained.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    )


def test_all_layers_in_full_take_embeddings_and_head_along(debug_vlm: Path) -> None:
    whole = Trainability().resolved(is_whole=True)
    assert whole["embeddings"].state == whole["head"].state == "full"
    part = Trainability().resolved(is_whole=False)
    assert part["embeddings"].state == part["head"].state == "frozen"
    lora = Trainability(language_model=LORA).resolved(is_whole=True)
    assert lora["embeddings"].state == lora["head"].state == "frozen"
    explicit = Trainability(head=FROZEN).resolved(is_whole=True)
    assert (explicit["embeddings"].state, explicit["head"].state) == ("full", "frozen")


@pytest.mark.parametrize(
    ("choice", "layers", "message"),
    [
        (
            Trainability(language_model=FROZEN, projector=FROZEN),
            (0,),
            "nothing would be trained: every part is frozen",
        ),
        (Trainability(), (), "layers: none is selected, but language_model.state is full"),
        (Trainability(), (0, 12, 40), r"layers: \[12, 40\] do not exist.*0 to 11"),
        (Trainability(embeddings=LORA), (0,), "embeddings.state: found lora; only linear layers"),
    ],
)
def test_what_would_train_nothing_is_refused(
    debug_vlm: Path, choice: Trainability, layers: tuple[int, ...], message: str
) -> None:
    model, _ = open_vlm(debug_vlm)
    with pytest.raises(RecipeError, match=message):
        set_trainable(model, choice, layers, lr=1e-3)


def test_a_shared_matrix_has_one_state(tmp_path: Path) -> None:
    model, _ = open_vlm(make("internvl", tmp_path / "internvl"))
    with pytest.raises(RecipeError, match=r"embeddings are full and the head is .*one matrix"):
        set_trainable(model, Trainability(embeddings=FULL), (0,), lr=1e-3)
    set_trainable(model, Trainability(embeddings=FULL, head=FULL), (0,), lr=1e-3)


def test_a_language_model_without_a_vision_encoder() -> None:
    config = hf.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=20,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config)
    with pytest.raises(RecipeError, match=r"projector\.state is full, but the model has none"):
        set_trainable(model, Trainability(), (0,), lr=1e-3)
    trained = set_trainable(model, Trainability(projector=FROZEN), (0,), lr=1e-3)
    assert [row.num_parameters for row in trained.rows if row.part == "projector"] == [0]


@pytest.mark.parametrize("part", [LORA, DORA], ids=["lora", "dora"])
def test_merged_adapters_answer_as_unmerged_ones(debug_vlm: Path, part: Part) -> None:
    model, processor = open_vlm(debug_vlm)
    trained = set_trainable(
        model, Trainability(language_model=part, vision_encoder=part), (1, 5), lr=3e-2
    )
    one_step(model, processor, trained)
    model.eval()
    batch = batches_of(model, processor)(7)[0]
    with torch.no_grad():
        before = model(**batch).logits
        merge_lora(model)
        after = model(**batch).logits
        untouched = open_vlm(debug_vlm)[0](**batch).logits
    assert torch.allclose(before, after, atol=1e-4, rtol=1e-4)
    assert (after - untouched).abs().max() > 1e-2, "it had to learn something"
    assert not any("lora" in name or "base_layer" in name for name, _ in model.named_parameters())


def test_a_kept_adapter_is_read_back_as_what_it_was(debug_vlm: Path, tmp_path: Path) -> None:
    model, processor = open_vlm(debug_vlm)
    choice = Trainability(language_model=LORA, projector=FROZEN)
    trained = set_trainable(model, choice, (1, 5), lr=3e-2)
    one_step(model, processor, trained)
    kept = save_adapter(model, tmp_path / "adapter", str(debug_vlm))
    config = json.loads((kept / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    merged = weights(merge_lora(model))
    fresh, _ = open_vlm(debug_vlm)
    merge_adapter(fresh, open_adapter(kept))
    for name, tensor in weights(fresh).items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name


def test_choices_are_plain_values() -> None:
    assert dataclasses.asdict(FULL)["state"] == "full"
    with pytest.raises(RecipeError, match="rank: found 0"):
        Part(state="lora", rank=0)
    with pytest.raises(RecipeError, match="dropout: found 1"):
        Part(state="lora", dropout=1.0)
    with pytest.raises(RecipeError, match="lr: found -1"):
        Part(state="full", lr=-1)


def test_the_table_is_told_in_a_few_lines(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    choice = Trainability(language_model=LORA, projector=Part(state="full", lr=2e-5))
    trained = set_trainable(model, choice, (1, 5, 6, 7), lr=1e-3)
    parts = [(line.part, line.state, line.lr) for line in summarise(trained.rows)]
    assert parts == [
        ("vision encoder", "frozen", None),
        ("projector", "full", 2e-5),
        ("layers 0, 2-4, 8-11", "frozen", None),
        ("layers 1, 5-7", "lora", 1e-3),
        ("embeddings", "frozen", None),
        ("head", "frozen", None),
    ]
    lines = summary_lines(trained.rows)
    assert lines[0].startswith("vision encoder: frozen, ")
    assert lines[3].startswith("layers 1, 5-7: lora, 56 tensors, ")
    assert lines[3].endswith("lr 0.001")
    assert f"in all {trained.num_trained:,} parameters are trained" in lines[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_forgotten_activations_are_worked_out_again(tmp_path: Path, family: str) -> None:
    folder = make(family, tmp_path / family)
    found = []
    for forgets in (False, True):
        model, processor = open_vlm(folder)
        trained = set_trainable(model, Trainability(), (1,), lr=1e-2)
        if forgets:
            enable_activation_checkpointing(model)
        one_step(model, processor, trained)
        found.append(weights(model))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_training_keeps_no_past(family: str, tmp_path: Path) -> None:
    model, processor = open_vlm(make(family, tmp_path / "vlm"))
    batch = batches_of(model, processor)(0)[0]
    batch.pop("labels")
    before = model(**batch)
    assert before.past_key_values is not None
    disable_kv_cache(model)
    after = model(**batch)
    assert after.past_key_values is None
    assert torch.equal(before.logits, after.logits)
