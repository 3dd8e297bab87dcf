"""Language models that can be assembled: those with keys and values of attention."""

from pathlib import Path

import pytest
import torch
from tests.support.assembled import PERCEIVER, language, made_of, text_logits, vision

from consomme.assemble.check import check_folder
from consomme.assemble.choices import CrossAttentionFusion, MlpConnector
from consomme.base.errors import CheckpointError
from consomme.models.weights import save_vlm

FAMILIES = """
arcee biogpt bloom cohere cohere2 deepseek_v3 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm
glm4 gpt2 gpt_neox gpt_oss granite lfm2 llama mistral mixtral mpt nemotron olmo olmo2 opt persimmon
phi phi3 qwen2 qwen3 qwen3_next recurrent_gemma smollm3 stablelm starcoder2 xglm
""".split()
SIZES = {"width": 64, "heads": 4, "ffn": 96, "layers": 4}


@pytest.mark.long
@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_what_they_were(family: str, crosses: bool, tmp_path: Path) -> None:
    say = language(family, **SIZES)
    expected = text_logits(say.model)
    if crosses:
        made = made_of(PERCEIVER, vision("clip"), say, fusion=CrossAttentionFusion(every=2))
    else:
        made = made_of(MlpConnector(), vision("clip"), say)
    assert torch.equal(text_logits(made.model)[..., : expected.shape[-1]], expected)
    check_folder(save_vlm(tmp_path / "model", made.model, made.processor), made)


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_a_language_model_without_attention_is_refused(family: str, tmp_path: Path) -> None:
    made = made_of(MlpConnector(), vision("clip"), language(family, **SIZES))
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    with pytest.raises(CheckpointError, match=r"does not work inside a Llava.*choose another one"):
        check_folder(folder, made)
