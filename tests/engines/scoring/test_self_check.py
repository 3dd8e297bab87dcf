"""Broken models are caught when they are opened: scored in a slower way, or refused."""

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.scoring.test_families import CAPTIONS, conversation, picture
from tests.support.broken_models import mix_tokens
from tests.support.families import hf, make, write
from tests.support.more_families import TEXT_FAMILIES, text_family

from consomme.base.errors import CheckpointError
from consomme.curate.perplexity import token_nll
from consomme.engines.scoring import transformers as engine
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.engines.scoring.ways import PADDED, SHARED, SINGLE
from consomme.models import selfcheck

llama = importlib.import_module("transformers.models.llama.modeling_llama")
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(lambda: text_family("Llama"), tmp_path_factory.mktemp("llama") / "model")


def check_scores(scorer: TransformersScorer) -> None:
    """Compare all captions with plain forward passes of one caption each."""
    requests = [ScoringRequest(turns=conversation(c)) for c in CAPTIONS]
    for request, score in zip(requests, scorer.score(requests), strict=True):
        plain_S = selfcheck.plain_nll(scorer.model, scorer.chat.encode(request.turns))
        assert isinstance(score, Score)
        assert score.nll == pytest.approx(float(plain_S.sum()), rel=1e-4)


def test_a_sound_model_takes_the_fastest_way(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        scorer = TransformersScorer(folder, token_nll)
    assert scorer.way == SHARED
    assert scorer.check.difference < 1e-6
    (line,) = [r for r in caplog.records if "self-check of scoring" in r.message]
    assert "shared prefixes equal plain forward passes of 2 probes" in line.message
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_logits_that_are_scaled_in_batches(
    folder: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        output = inner(self, input_ids=input_ids, **more)
        if len(input_ids) > 1:
            output.logits = output.logits * 1.5
        return output

    # The texts of one prompt share a row, so only padded rows make a batch.
    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(engine, "prefix_limits", lambda _: "not tried")
    scorer = TransformersScorer(folder, token_nll)
    assert scorer.way == SINGLE
    (warning,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "rows are not batched" in warning
    assert "differs by" in warning
    check_scores(scorer)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_layers_that_mix_tokens_beside_attention(
    folder: Path, monkeypatch: Patch, looks_ahead: bool
) -> None:
    mix_tokens(monkeypatch, looks_ahead=looks_ahead)
    if looks_ahead:
        # A token's likelihood would be that of a token which the model has seen.
        with pytest.raises(CheckpointError, match="attends to tokens that come after"):
            TransformersScorer(folder, token_nll)
        return
    scorer = TransformersScorer(folder, token_nll)
    assert scorer.way == PADDED
    check_scores(scorer)


def test_a_language_model_that_reads_in_both_directions_is_refused(tmp_path: Path) -> None:
    folder = write(lambda: text_family("Bert"), tmp_path / "bert")
    with pytest.raises(CheckpointError, match="attends to tokens that come after"):
        TransformersScorer(folder, token_nll)
    decoder = write(lambda: text_family("Bert", is_decoder=True), tmp_path / "decoder")
    check_scores(TransformersScorer(decoder, token_nll))


def test_a_window_that_the_config_does_not_declare(folder: Path, monkeypatch: Patch) -> None:
    inner = llama.create_causal_mask

    def create(config: Any, inputs_embeds: Any, attention_mask: Any, **more: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        width = inputs_embeds.shape[1]
        position_T = torch.arange(width)
        distance_TT = position_T[:, None] - position_T
        attends_TT = (distance_TT >= 0) & (distance_TT < 8)
        return attends_TT[None, None] & attention_mask[:, None, None, :].bool() | torch.eye(
            width, dtype=torch.bool
        )

    monkeypatch.setattr(llama, "create_causal_mask", create)
    assert inner is not create
    scorer = TransformersScorer(folder, token_nll)
    assert scorer.way == PADDED
    check_scores(scorer)


class WeighingTokenizer:
    """A tokenizer that gives an input of its own for each token."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, text: Any, **options: Any) -> Any:
        output = self._inner(text, **options)
        output["token_weights"] = [[0.1 * (k % 7) for k, _ in enumerate(output["input_ids"][0])]]
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_an_unknown_input_of_each_token(folder: Path, monkeypatch: Patch) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, token_weights: Any = None, **more: Any) -> Any:
        embedded_BTW = self.get_input_embeddings()(input_ids) * (1 + token_weights[..., None])
        return inner(self, inputs_embeds=embedded_BTW, **more)

    def open_weighing(*args: Any) -> tuple[Any, Any]:
        model, words = open_model(*args)
        return model, WeighingTokenizer(words)

    open_model = engine.open_model
    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(engine, "open_model", open_weighing)
    scorer = TransformersScorer(folder, token_nll)
    assert "token_weights" in scorer.chat.encode(conversation("star")).token_inputs
    check_scores(scorer)

    # Without the tokenizer that gives it, the family's own forward pass fails: refused at load.
    monkeypatch.setattr(engine, "open_model", open_model)
    with pytest.raises(CheckpointError, match="plain forward pass of this llama model fails"):
        TransformersScorer(folder, token_nll)


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
        TransformersScorer(folder, token_nll)


def test_an_encoder_that_fails_in_batches_is_run_with_its_row(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    folder = make("llava", tmp_path / "llava")
    requests = [ScoringRequest(turns=conversation(c), images=(picture(0),)) for c in CAPTIONS]
    sound = TransformersScorer(folder, token_nll)
    expected = [score.nll for score in sound.score(requests)]
    inner = hf.LlavaModel.get_image_features

    def features(self: Any, pixel_values: Any = None, **more: Any) -> Any:
        output = inner(self, pixel_values=pixel_values, **more)
        return output if len(pixel_values) == 1 else output.to_tuple()

    monkeypatch.setattr(hf.LlavaModel, "get_image_features", features)
    broken = TransformersScorer(folder, token_nll)
    assert (sound.way, broken.way) == (SHARED, SINGLE)
    assert [score.nll for score in broken.score(requests)] == pytest.approx(expected, rel=1e-5)


def test_a_processor_that_takes_no_image_stops_at_load(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = make("llava", tmp_path / "llava")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("Invalid input type")

    monkeypatch.setattr(hf.LlavaProcessor, "__call__", refuse)
    with pytest.raises(CheckpointError, match="does not take a question about a picture"):
        TransformersScorer(folder, token_nll)


def test_rows_beyond_a_window_too_long_to_check_run_alone(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(TEXT_FAMILIES["mistral"], tmp_path / "mistral")
    scorer = TransformersScorer(folder, token_nll, token_budget=10)
    assert scorer.check.not_checked == {
        "attention beyond 24 tokens": "longer rows run one at a time"
    }
    assert "is not checked" in caplog.text
    alone: list[int] = []
    inner = scorer._nll_alone
    monkeypatch.setattr(
        scorer, "_nll_alone", lambda one: alone.append(len(one.chat.input_ids)) or inner(one)
    )
    check_scores(scorer)
    assert alone
    assert min(alone) > 24


def test_a_result_is_cached_by_content_and_settings(
    folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("CONSOMME_CACHE_DIR", str(tmp_path))
    first = TransformersScorer(folder, token_nll, model_hash="abc").check
    (file,) = (tmp_path / "consomme" / "selfchecks").iterdir()
    assert json.loads(file.read_bytes())["way"] == SHARED
    calls: list[object] = []
    plain = selfcheck.plain_nll
    monkeypatch.setattr(selfcheck, "plain_nll", lambda *a, **k: calls.append(0) or plain(*a, **k))
    assert TransformersScorer(folder, token_nll, model_hash="abc").check == first
    assert not calls
    TransformersScorer(folder, token_nll, model_hash="def")
    assert calls


def test_16_bits_have_a_tolerance_of_their_own(folder: Path) -> None:
    scorer = TransformersScorer(folder, token_nll, dtype="bfloat16")
    assert scorer.way == SHARED
    assert 0.007 < scorer.check.tolerance < 0.032
