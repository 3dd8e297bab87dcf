"""Adapters, and models without a vision encoder: both engines generate what plain weights do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.adapters import make_adapter

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.engines.generation.registry import GENERATION_ENGINES
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.imports import import_transformers
from consomme.models.tokenizer import train_tokenizer
from consomme.models.weights import open_vlm

SAMPLING = Sampling(max_tokens=16)
ENGINES = ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
MODULES = [
    f"model.language_model.layers.{layer}.{name}"
    for layer in (0, 5, 11)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Noise over a coloured ground, each picture different."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 128, (count, 1, 1, 3))
    noise = rng.integers(0, 128, (count, 48, 48, 3))
    return [Image.fromarray(picture) for picture in (ground + noise).astype(np.uint8)]


def opened(engine: str, folder: Path, **options: Any) -> Any:
    if engine == "vllm":
        options["kv_cache_gb"] = 0.25
    return GENERATION_ENGINES.build({"name": engine, **options})(str(folder), SAMPLING)


@pytest.fixture(scope="module")
def adapter(debug_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of an adapter, and the texts of a model with the products added to its weights."""
    folder = tmp_path_factory.mktemp("adapter")
    model, processor = open_vlm(debug_vlm)
    products = make_adapter(folder, model, MODULES)
    with torch.no_grad():
        for name, product in products.items():
            model.get_submodule(name).weight += product
    expected = []
    for image in pictures(6):
        prompt = "<bos><user><image>describe the image.<assistant>"
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return folder, expected


@pytest.mark.parametrize("name", ENGINES)
def test_an_adapter_generates_what_the_merged_weights_generate(
    name: str, debug_vlm: Path, adapter: Any
) -> None:
    folder, expected = adapter
    requests = [Request.of_prompt("describe the image.", [image]) for image in pictures(6)]
    engine = opened(name, debug_vlm, adapter=str(folder))
    try:
        assert [one.text for one in engine.generate(requests)] == expected
    finally:
        engine.close()
    plain = [one.text for one in TransformersEngine(debug_vlm, SAMPLING).generate(requests)]
    assert sum(a != b for a, b in zip(plain, expected, strict=True)) >= 5


@pytest.mark.vllm
def test_vllm_refuses_adapters_that_it_would_ignore(debug_vlm: Path, tmp_path: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    make_adapter(tmp_path, model, [*MODULES, "model.multi_modal_projector.linear_1"])
    with pytest.raises(CheckpointError, match=r"adapts model\.multi_modal_projector\.linear_1"):
        opened("vllm", debug_vlm, adapter=str(tmp_path))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained language model with a chat template."""
    hf = import_transformers()
    folder = tmp_path_factory.mktemp("language_model")
    tokenizer = train_tokenizer(["a large red circle, and a small blue square. what is it?"], 300)
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_without_a_vision_encoder_generates(name: str, language_model: Path) -> None:
    hf = import_transformers()
    questions = ["what is it?", "a red circle", "blue?", "what is a large blue square, then?"]
    model = hf.LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(language_model)
    expected = []
    for question in questions:
        ids = tokenizer(f"<bos><user>{question}<assistant>", return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=16, do_sample=False)
        expected.append(
            tokenizer.decode(new[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        )
    engine = opened(name, language_model)
    try:
        found = engine.generate([Request.of_prompt(question) for question in questions])
        assert [one.text for one in found if isinstance(one, Generation)] == expected
        with pytest.raises(CheckpointError, match="no vision encoder"):
            engine.generate([Request.of_prompt("what?", [pictures(1)[0]])])
    finally:
        engine.close()
    assert len(set(expected)) == 4


@pytest.mark.vllm
def test_missing_folders_are_named(tmp_path: Path, debug_vlm: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        opened("vllm", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not there"):
        opened("vllm", debug_vlm, adapter=str(tmp_path))


def test_turns_of_a_request_end_with_a_question() -> None:
    with pytest.raises(ValueError, match="found: user, assistant"):
        Request(turns=(Turn(role="user", content="a"), Turn(role="assistant", content="b")))
    with pytest.raises(ValueError, match="no turns at all"):
        Request(turns=())
