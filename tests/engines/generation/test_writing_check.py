"""Broken models are caught when they are opened for writing: written row by row, or refused."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.scoring.test_self_check import WeighingTokenizer
from tests.support.broken_models import mix_tokens
from tests.support.families import hf, make, write
from tests.support.more_families import TEXT_FAMILIES, text_family

from consomme.base.errors import CheckpointError
from consomme.engines.generation import transformers as engine_module
from consomme.engines.generation import writing_check
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.writing_check import BATCHED, SINGLE
from consomme.models import selfcheck

llama = importlib.import_module("transformers.models.llama.modeling_llama")
Patch = pytest.MonkeyPatch
QUESTIONS = ("star?", "what color is the circle beside the star?", "is it large, or is it small?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(lambda: text_family("Llama"), tmp_path_factory.mktemp("llama") / "model")


def check_texts(engine: TransformersEngine) -> None:
    """Compare texts that are written together with those of `generate` on each prompt alone."""
    requests = [Request.of_prompt(question) for question in QUESTIONS]
    found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        row = engine.chat.encode_prompt(request.turns)
        ids_1T = engine.model.generate(
            **selfcheck.plain_inputs(engine.model, row),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=engine._stop_ids,
            pad_token_id=0,
        )
        assert isinstance(one, Generation)
        assert one.text == engine._decode_ids(ids_1T[0, len(row.input_ids) :].tolist())


def opened(folder: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine(folder, Sampling(max_tokens=6), **options)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_layers_that_mix_tokens_beside_attention(
    folder: Path, monkeypatch: Patch, looks_ahead: bool
) -> None:
    mix_tokens(monkeypatch, looks_ahead=looks_ahead)
    engine = opened(folder)
    assert (engine.check.way, engine.batch_size) == (SINGLE, 1)
    check_texts(engine)


@pytest.mark.parametrize(("is_chunk", "way"), [(False, BATCHED), (True, SINGLE)])
def test_a_window_that_the_config_does_not_declare(
    folder: Path, monkeypatch: Patch, is_chunk: bool, way: str
) -> None:
    """A window counts back from each token; chunks are counted from the padding."""

    def create(
        inputs_embeds: Any, attention_mask: Any, past_key_values: Any = None, **_: Any
    ) -> Any:
        if attention_mask is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = torch.ones((len(inputs_embeds), seen + inputs_embeds.shape[1]))
        place_T = torch.arange(attention_mask.shape[1])
        query_Q1 = place_T[-inputs_embeds.shape[1] :, None]
        near_QT = place_T // 8 == query_Q1 // 8 if is_chunk else query_Q1 - place_T < 8
        attends_QT = (place_T <= query_Q1) & near_QT
        return attends_QT[None, None] & attention_mask[:, None, None, :].bool() | (
            place_T == query_Q1
        )

    monkeypatch.setattr(llama, "create_causal_mask", create)
    engine = opened(folder)
    assert engine.check.way == way
    check_texts(engine)


def test_an_unknown_input_of_each_token(folder: Path, monkeypatch: Patch) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, token_weights: Any = None, **more: Any) -> Any:
        weights_BT1 = token_weights[:, -input_ids.shape[1] :, None]
        embedded_BTW = self.get_input_embeddings()(input_ids) * (1 + weights_BT1)
        return inner(self, inputs_embeds=embedded_BTW, **more)

    def open_weighing(*args: Any) -> tuple[Any, Any]:
        model, words = open_model(*args)
        return model, WeighingTokenizer(words)

    open_model = engine_module.open_model
    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(engine_module, "open_model", open_weighing)
    engine = opened(folder)
    assert engine.check.way == BATCHED
    check_texts(engine)
    # Without the tokenizer that gives it, the family's own `generate` fails: refused at load.
    monkeypatch.setattr(engine_module, "open_model", open_model)
    with pytest.raises(CheckpointError, match="cannot write with this llama model: found TypeErr"):
        opened(folder)


def test_texts_beyond_a_window_too_long_to_check_run_alone(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(TEXT_FAMILIES["mistral"], tmp_path / "mistral")
    monkeypatch.setattr(writing_check, "_LONGEST_WINDOW", 20)
    engine = opened(folder)
    assert engine.check.not_checked == {"attention beyond 24 tokens": "longer texts run alone"}
    assert "is not checked" in caplog.text
    sizes: list[tuple[int, int]] = []
    inner = engine._inputs

    def inputs(prompts: Any) -> dict[str, Any]:
        sizes.append((len(prompts), max(len(one.input_ids) for one in prompts)))
        return inner(prompts)

    monkeypatch.setattr(engine, "_inputs", inputs)
    check_texts(engine)
    assert {size for size, _ in sizes} == {1, 2}
    assert all((size == 1) == (length + 6 > 24) for size, length in sizes)


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_a_result_is_cached_by_content_and_settings(
    folder: Path, tmp_path: Path, monkeypatch: Patch, family: str
) -> None:
    if family == "llava":
        folder = make("llava", tmp_path / "llava")
    monkeypatch.setenv("CONSOMME_CACHE_DIR", str(tmp_path / "cache"))
    runs: list[object] = []
    inner = writing_check._run
    monkeypatch.setattr(writing_check, "_run", lambda *a: runs.append(0) or inner(*a))
    first = opened(folder, model_hash="abc").check
    assert runs
    runs.clear()
    assert opened(folder, model_hash="abc").check == first
    assert not runs
    opened(folder, model_hash="abc", dtype="bfloat16")
    assert runs
    runs.clear()
    opened(folder, model_hash="def")
    assert runs
