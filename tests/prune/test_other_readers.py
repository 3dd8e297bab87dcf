"""What is left of a model, as others read it: vLLM, and configs of before a family had parts."""

import json
from pathlib import Path

import pytest
import torch
from tests.support.deep_families import write_deep
from tests.support.families import noise
from tests.support.vllm_families import VLLM_FAMILIES, write_vllm_family

from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model
from consomme.prune.checking import check_pruned, probes, skipped_outputs
from consomme.prune.writing import plan_removal, write_pruned


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("name", VLLM_FAMILIES)
def test_vllm_writes_what_transformers_writes(tmp_path: Path, name: str) -> None:
    from consomme.engines.generation.transformers import TransformersEngine
    from consomme.engines.generation.vllm import VLLMEngine
    from consomme.engines.vllm_engine import EngineOptions

    folder = write_vllm_family(name, tmp_path / name)
    pruned = str(write_pruned(tmp_path / "pruned", plan_removal(folder, (1,))))
    requests = [Request.of_prompt("star?", [noise(k, 40, 40)]) for k in range(3)]
    requests.append(Request.of_prompt("what color is it?"))
    ours = TransformersEngine(pruned, Sampling(max_tokens=8)).generate(requests)
    engine = VLLMEngine(pruned, Sampling(max_tokens=8), EngineOptions(kv_cache_gb=0.1))
    try:
        theirs = engine.generate(requests)
    finally:
        engine.close()
    assert all(isinstance(one, Generation) for one in (*ours, *theirs))
    assert [one.text for one in ours] == [one.text for one in theirs]


def test_a_config_that_describes_the_text_at_its_top(tmp_path: Path) -> None:
    """As the first models of Qwen2-VL on the hub have it."""
    folder = write_deep("qwen2_vl", tmp_path / "flat")
    before = json.loads((folder / "config.json").read_text())
    text = before.pop("text_config")
    (folder / "config.json").write_text(json.dumps({**text, **before}))
    model, processor = open_model(folder)
    inputs = probes(model, chat_encoder_for(model.config, processor))
    expected = skipped_outputs(model, inputs, (1, 2))
    written = write_pruned(tmp_path / "pruned", plan_removal(folder, (1, 2)))
    content = json.loads((written / "config.json").read_text())
    assert content["num_hidden_layers"] == 2
    assert "text_config" not in content
    assert check_pruned(open_model(written)[0], inputs, expected) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_deep("llava", tmp_path / "llava")
    model, processor = open_model(folder, dtype)
    model.save_pretrained(folder)
    inputs = probes(model, chat_encoder_for(model.config, processor))
    expected = skipped_outputs(model, inputs, (0, 2))
    written = write_pruned(tmp_path / "pruned", plan_removal(folder, (0, 2)))
    pruned, _ = open_model(written, dtype)
    assert check_pruned(pruned, inputs, expected) == 0
    assert json.loads((written / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
