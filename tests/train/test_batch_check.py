"""Broken models are caught when training opens them: rows are made in a slower way, or refused."""

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.scoring.test_families import CAPTIONS, conversation
from tests.engines.scoring.test_self_check import WeighingTokenizer
from tests.support.broken_models import mix_tokens
from tests.support.conversations import batcher_of
from tests.support.families import hf, make, noise, write
from tests.support.more_families import TEXT_FAMILIES, text_family

from consomme.base.errors import CheckpointError
from consomme.models import selfcheck
from consomme.models.attention import longest_alike
from consomme.models.lora import LoraShape, add_lora
from consomme.models.weights import open_model
from consomme.train import batch_check
from consomme.train.batch_check import PACKED, PADDED, SINGLE, check_batches, row_layout
from consomme.train.loop import sum_nll
from consomme.train.packing import RowLayout

llama = importlib.import_module("transformers.models.llama.modeling_llama")
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(lambda: text_family("Llama"), tmp_path_factory.mktemp("llama") / "model")


def checked(folder: Path, model_hash: str | None = None) -> selfcheck.SelfCheck:
    """Check a model, and that rows that are made as was found have the loss of plain passes."""
    model, processor = open_model(folder)
    return check_losses(model, *batcher_of(model, processor), model_hash=model_hash)


def check_losses(model: Any, chat: Any, batcher: Any, **options: Any) -> selfcheck.SelfCheck:
    check = check_batches(model, chat, batcher, packs=True, **options)
    layout = row_layout(check, batcher, micro_batch=3, pack_tokens=400)
    rows = [chat.encode(conversation(caption)) for caption in CAPTIONS]
    make_batch = batcher.collate if layout.pack_tokens is None else batcher.pack
    (passes,) = layout.split([len(row.input_ids) for row in rows], world=1)
    for some in passes:
        batch = [rows[k] for row in some for k in row]
        with torch.no_grad():
            found = float(sum_nll(model, make_batch(batch)))
        plain = sum(float(selfcheck.plain_nll(model, row).sum()) for row in batch)
        assert found == pytest.approx(plain, rel=1e-4)
    return check


def test_a_sound_model_is_packed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check = checked(folder)
    assert check.way == PACKED
    assert check.difference < 1e-6
    assert "training: packed rows equal plain forward passes of 2 probes within 1.0e-04" in (
        check.line()
    )
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_logits_that_are_scaled_in_batches(
    folder: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        output = inner(self, input_ids=input_ids, **more)
        if len(input_ids) > 1:
            output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    assert checked(folder).way == SINGLE
    (warning,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert "micro_batch is 1 (text" in warning
    assert "differs by" in warning


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_layers_that_mix_tokens_beside_attention(
    folder: Path, monkeypatch: Patch, looks_ahead: bool
) -> None:
    mix_tokens(monkeypatch, looks_ahead=looks_ahead)
    if looks_ahead:
        # It would learn to say a token that it has seen.
        with pytest.raises(CheckpointError, match="attends to tokens that come after"):
            checked(folder)
        return
    assert checked(folder).way == PADDED


def test_a_window_that_the_config_does_not_declare(folder: Path, monkeypatch: Patch) -> None:
    def create(inputs_embeds: Any, attention_mask: Any, **_: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        position_T = torch.arange(inputs_embeds.shape[1])
        distance_TT = position_T[:, None] - position_T
        attends_TT = (distance_TT >= 0) & (distance_TT < 8)
        return attends_TT[None, None] & attention_mask[:, None, None, :].bool() | torch.eye(
            len(position_T), dtype=torch.bool
        )

    monkeypatch.setattr(llama, "create_causal_mask", create)
    assert checked(folder).way == PADDED


def test_an_unknown_input_of_each_token(folder: Path, monkeypatch: Patch) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(
        self: Any, input_ids: Any = None, position_ids: Any = None, token_weights: Any = None,
        **more: Any,
    ) -> Any:  # fmt: skip
        embedded_BTW = self.get_input_embeddings()(input_ids) * (1 + token_weights[..., None])
        return inner(self, inputs_embeds=embedded_BTW, position_ids=position_ids, **more)

    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    model, words = open_model(folder)
    chat, batcher = batcher_of(model, WeighingTokenizer(words))
    assert "token_weights" in chat.encode(conversation("star")).token_inputs
    assert check_losses(model, chat, batcher).way == PACKED
    # Without the tokenizer that gives it, the family's own forward pass fails: refused at load.
    with pytest.raises(CheckpointError, match="plain forward pass of this llama model fails"):
        check_batches(model, *batcher_of(model, words), packs=True)


def test_a_model_whose_numbers_change_from_call_to_call_is_refused(
    folder: Path, monkeypatch: Patch
) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **more: Any) -> Any:
        output = inner(self, *args, **more)
        output.logits = output.logits + torch.randn_like(output.logits)
        return output

    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    with pytest.raises(CheckpointError, match=r"no way of running.*one row at a time: text \d dif"):
        checked(folder)


def test_a_model_that_fails_in_training_mode_only_is_refused(
    folder: Path, monkeypatch: Patch
) -> None:
    inner = llama.LlamaModel.forward

    def forward(self: Any, *args: Any, **more: Any) -> Any:
        if self.training:
            raise ValueError("labels are required")
        return inner(self, *args, **more)

    monkeypatch.setattr(llama.LlamaModel, "forward", forward)
    with pytest.raises(CheckpointError, match=r"cannot run in training mode: .*labels are req"):
        checked(folder)


def test_a_window_too_long_to_check(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(TEXT_FAMILIES["olmo3"], tmp_path / "olmo3")
    monkeypatch.setattr(batch_check, "LONGEST_CHECKED", {"cpu": 20})
    check = checked(folder)
    assert check.not_checked == {"attention beyond 24 tokens": "longer samples run alone"}
    assert check.alone_beyond == 24
    assert "is not checked" in caplog.text


def test_positions_that_change_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Beyond the length that the model was first trained with, LongRoPE has other frequencies."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
    }
    folder = write(
        lambda: text_family(
            "Phi3", pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=30
        ),
        tmp_path / "phi3",
    )
    model, processor = open_model(folder)
    chat, batcher = batcher_of(model, processor)
    assert longest_alike(model.config) == 30
    check = check_losses(model, chat, batcher)
    assert (check.way, check.alone_beyond) == (PACKED, 30)
    # The longest caption is longer, and all in one batch would have other losses.
    rows = [chat.encode(conversation(caption)) for caption in CAPTIONS]
    plain = sum(float(selfcheck.plain_nll(model, row).sum()) for row in rows)
    with torch.no_grad():
        assert float(sum_nll(model, batcher.collate(rows))) != pytest.approx(plain, rel=1e-3)


def test_a_row_beyond_the_scale_of_its_positions_is_not_made(tmp_path: Path) -> None:
    """Llama 4 scales attention by the place in the row, not in the conversation."""
    build = TEXT_FAMILIES["llama4_text"]
    folder = write(lambda: build(floor_scale=150), tmp_path / "llama4")
    model, processor = open_model(folder)
    chat, batcher = batcher_of(model, processor)
    check = check_losses(model, chat, batcher)
    assert check.way == PACKED
    layout = row_layout(check, batcher, micro_batch=3, pack_tokens=400)
    assert layout.pack_tokens == 149


def test_it_is_the_same_with_adapters_and_frozen_parts(tmp_path: Path) -> None:
    model, processor = open_model(make("llava", tmp_path / "llava"))
    chat, batcher = batcher_of(model, processor)
    model.requires_grad_(False)
    layers = model.model.language_model.layers
    names = [n for n, m in model.named_modules() if n.endswith("q_proj") and m in {
        layer.self_attn.q_proj for layer in layers}]  # fmt: skip
    shape = LoraShape(rank=4, alpha=8, dropout=0.5, has_magnitude=False)
    add_lora(model, names, shape, "language_model")
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check = check_batches(model, chat, batcher, packs=True)
    assert check.way == PACKED
    assert check.num_probes == 10
    assert all(module.training for module in model.modules()), "its mode is restored"
    assert torch.equal(torch.rand(1), expected), "random numbers are as before"


def test_a_result_is_cached_by_content_and_settings(
    folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("CONSOMME_CACHE_DIR", str(tmp_path / "cache"))
    model, processor = open_model(folder)
    chat, batcher = batcher_of(model, processor)
    calls: list[object] = []
    plain = selfcheck.plain_nll
    monkeypatch.setattr(selfcheck, "plain_nll", lambda *a, **k: calls.append(0) or plain(*a, **k))
    found = []
    for packs, model_hash in [(True, "a"), (False, "a"), (True, "a"), (True, "b"), (True, None)]:
        calls.clear()
        check = check_batches(model, chat, batcher, packs=packs, model_hash=model_hash)
        found.append((check.way, bool(calls)))
    assert found == [
        (PACKED, True), (PADDED, True), (PACKED, False), (PACKED, True), (PACKED, True)
    ]  # fmt: skip


def test_one_row_at_a_time_is_one_row_at_a_time(folder: Path) -> None:
    _, batcher = batcher_of(*open_model(folder))
    check = selfcheck.SelfCheck(kind="training", way=SINGLE, tolerance=1e-4, difference=0.0)
    layout = row_layout(check, batcher, micro_batch=8, pack_tokens=400)
    assert layout == RowLayout(micro_batch=1)


def test_images_of_different_shape_that_cannot_be_joined(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """A family whose encoder takes one image at a time."""
    inner = hf.LlavaModel.get_image_features

    def features(self: Any, pixel_values: Any = None, **more: Any) -> Any:
        assert len(pixel_values) == 1
        return inner(self, pixel_values=pixel_values, **more)

    monkeypatch.setattr(hf.LlavaModel, "get_image_features", features)
    model, processor = open_model(make("llava", tmp_path / "llava"))
    chat, batcher = batcher_of(model, processor)
    check = check_batches(model, chat, batcher, packs=True)
    assert check.way == SINGLE
    row = chat.encode(conversation("star"), [noise(1, 40, 30)])
    with torch.no_grad():
        loss = float(sum_nll(model, batcher.collate([row])))
    assert loss == pytest.approx(float(selfcheck.plain_nll(model, row).sum()), rel=1e-5)
