"""A model that learned one sentence says it and stops, in every family and either engine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import families, table_families
from tests.support.families import FAMILIES, noise, write
from tests.support.table_families import MADE_HERE

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.vllm import VLLMEngine
from consomme.engines.vllm_engine import EngineOptions
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model, save_trained, save_vlm
from consomme.soup.ingredients import open_ingredient
from consomme.soup.mixing import ModelMix
from consomme.soup.writing import write_soup
from consomme.train.loop import ScheduleConfig, fit
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parts import Trainability
from consomme.train.trainable import set_trainable

pytestmark = pytest.mark.slow
QUICK = ("gemma3", "llava")
"""Families that were never taught to stop."""

NEW = ("llava_next", "mistral3", "aya_vision")
"""Families beyond the eleven."""

WITHOUT_VLLM = {
    "idefics2": "vLLM .* cannot load .*'Idefics2Processor' object has no attribute",
    "paligemma": "bidirectional attention, which vLLM does not support",
}
"""Families that are refused with vLLM, and what the refusal says."""

LINE_BREAKS = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
"""Tokens of every Gemma, which vLLM looks up; our tiny tokenizers have none of them."""

WIDE = {"head_dim": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
"""vLLM has no kernels for narrower heads."""

SOUPS = ("llava", "llava_onevision", "idefics3", "qwen2_5_vl", "internvl", "gemma3")
"""Families whose soups are tried in vLLM."""

NUM_STEPS = 60
PROMPT = "describe the image."
SENTENCE = "a large blue square beside it"


def learned(base: Path, folder: Path, num_steps: int = NUM_STEPS) -> Path:
    """Train a model on one sentence, and save it as `train` does."""
    torch.manual_seed(0)
    model, processor = open_model(base)
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    num_layers = model.config.get_text_config().num_hidden_layers
    trained = set_trainable(model, Trainability(), tuple(range(num_layers)), lr=5e-3)
    turns = (Turn(role="user", content=PROMPT), Turn(role="assistant", content=SENTENCE))
    batch = batcher.collate([chat.encode(turns, [noise(0, 40, 40)])])
    fit(
        Ddp()(model, trained.groups, torch.device("cpu")),
        lambda step: [dict(batch)],
        ScheduleConfig(num_steps=num_steps),
        start=0,
        after_step=lambda report: None,
    )
    return save_trained(folder, model, base, chat.turn_end.last_id)


def add_line_breaks(folder: Path) -> None:
    """Give a tiny Gemma the tokens of line breaks."""
    model, processor = open_model(folder)
    processor.tokenizer.add_tokens(list(LINE_BREAKS))
    model.resize_token_embeddings(len(processor.tokenizer))
    save_vlm(folder, model, processor)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.long)
        for name in (*FAMILIES, *NEW)
    ],
)
def test_it_says_the_sentence_and_stops(folders: Any, name: str, tmp_path: Path) -> None:
    base = write(MADE_HERE[name], tmp_path / name) if name in NEW else folders(name)
    made = learned(base, tmp_path / "model")
    engine = TransformersEngine(made, Sampling(max_tokens=40))
    (found,) = engine.generate([Request.of_prompt(PROMPT, [noise(0, 40, 40)])])
    assert isinstance(found, Generation)
    assert found.finish_reason == "stop"
    # The tiny tokenizers of LLaVA and Idefics 2 join the colon before an answer with the space
    # after it, so these two continue a prompt that they were not trained on.
    is_exact = name not in ("llava", "idefics2")
    assert found.text.strip() == SENTENCE if is_exact else found.text.endswith("beside it")
    # So does anybody else's code that reads the folder.
    assert engine.chat.turn_end.last_id in engine._stop_ids


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("name", [*FAMILIES, *NEW])
def test_it_stops_in_vllm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learned(wide_base(name, tmp_path, monkeypatch), tmp_path / "model")
    options = EngineOptions(kv_cache_gb=0.1)
    if name in WITHOUT_VLLM:
        with pytest.raises(CheckpointError, match=WITHOUT_VLLM[name]):
            VLLMEngine(str(made), Sampling(max_tokens=40), options)
        return
    assert said_in_vllm(made) == SENTENCE


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("name", SOUPS)
def test_a_soup_says_it_in_vllm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = wide_base(name, tmp_path, monkeypatch)
    steps = (NUM_STEPS - 20, NUM_STEPS)
    ingredients = [open_ingredient(learned(base, tmp_path / f"{n}", n)) for n in steps]
    made = write_soup(tmp_path / "soup", ModelMix.of(ingredients, [0.3, 0.7]))
    assert said_in_vllm(made) == SENTENCE


def wide_base(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a model that vLLM has kernels for, with random weights."""
    narrow = families.text_config
    for module in (families, table_families):
        monkeypatch.setattr(module, "text_config", lambda cls, **more: narrow(cls, **WIDE | more))
        monkeypatch.setattr(module, "MROPE", families.MROPE | {"mrope_section": [4, 6, 6]})
    # A line break, which no tokenizer joins to the answer, in the place of a space.
    llava, idefics = families.LLAVA_TEMPLATE, families.IDEFICS_TEMPLATE
    llava = llava.replace("}}: ", "}}:\n").replace("ASSISTANT:", "ASSISTANT:\n")
    idefics = idefics.replace("%}: {%", "%}:\n{%").replace("Assistant:", "Assistant:\n")
    monkeypatch.setattr(families, "LLAVA_TEMPLATE", llava)
    monkeypatch.setattr(families, "IDEFICS_TEMPLATE", idefics)
    base = write((FAMILIES | MADE_HERE)[name], tmp_path / name)
    if name in ("gemma3", "paligemma"):
        add_line_breaks(base)
    return base


def said_in_vllm(folder: Path) -> str:
    """Return the answer of a model, which has to have stopped by itself."""
    options = EngineOptions(kv_cache_gb=0.1)
    engine = VLLMEngine(str(folder), Sampling(max_tokens=40), options)
    try:
        (found,) = engine.generate([Request.of_prompt(PROMPT, [noise(0, 40, 40)])])
    finally:
        engine.close()
    assert isinstance(found, Generation)
    assert found.finish_reason == "stop"
    return found.text.strip()
