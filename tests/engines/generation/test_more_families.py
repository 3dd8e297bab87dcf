"""Families that no other test had: they write what plain `generate` writes, or are refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.generation.test_families import QUESTIONS, picture, spelled
from tests.support.families import IM, chatml, hf, text_config, tokenizer, write
from tests.support.messages import to_messages
from tests.support.more_families import MORE_FAMILIES, text_family

from consomme.base.errors import CheckpointError
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.writing_check import BATCHED, SINGLE
from consomme.models.weights import open_model

pytestmark = [pytest.mark.slow, pytest.mark.long]

SINGLE_ROWS = {"recurrent_gemma", "minicpmv4_6", "minimax", "rwkv"}
"""Padding on the left changes what they write, or images of two shapes do not go together."""


def minicpmv4_6() -> tuple[Any, Any]:
    """Its vision encoder takes images of one shape in a batch."""
    roles = {
        "image_token": "<unk_image>",
        "video_token": "<unk_video>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    words = tokenizer(
        "bytes", [*IM, *roles.values()], roles, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    config = hf.MiniCPMV4_6Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 8,
            "insert_layer_id": 0,
        },
        insert_layer_id=0,
        image_size=64,
        text_config=text_config(hf.Qwen3Config).to_dict(),
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
    )
    images = hf.MiniCPMV4_6ImageProcessorPil(scale_resolution=64, patch_size=8, max_slice_nums=4)
    template = chatml("<unk_image>", after_image="\n")
    processor = hf.MiniCPMV4_6Processor(
        images, hf.MiniCPMV4_6VideoProcessor(), words, chat_template=template
    )
    return hf.MiniCPMV4_6ForConditionalGeneration(config), processor


FAMILIES_THAT_WRITE = MORE_FAMILIES | {"minicpmv4_6": minicpmv4_6}


def naive(opened: tuple[Any, Any], request: Request) -> str:
    """Text of one request, without our code."""
    model, processor = opened
    has_image = bool(request.images)
    words = getattr(processor, "tokenizer", processor)
    text = processor.apply_chat_template(
        to_messages(request.turns, has_image=has_image, has_parts=words is not processor),
        tokenize=False,
        add_generation_prompt=True,
    )
    special = not (words.bos_token and text.startswith(words.bos_token))
    options = {"return_tensors": "pt", "add_special_tokens": special}
    if has_image:
        inputs = processor(text=[text], images=list(request.images), **options)
    elif model.config.model_type in ("got_ocr2", "granite4_vision"):
        # Their processors take no text without an image.
        inputs = words([text], **options)
    else:
        inputs = processor(text=[text], **options)
    # Llama 4's image processor returns bfloat16 whatever the model's dtype is.
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    ids = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return spelled(ids[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("name", FAMILIES_THAT_WRITE)
def test_texts_equal_a_naive_reference(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(FAMILIES_THAT_WRITE[name], tmp_path / name)
    engine = TransformersEngine(folder, Sampling(max_tokens=6))
    assert engine.check.way == (SINGLE if name in SINGLE_ROWS else BATCHED), engine.check
    warnings = [r.message for r in caplog.records if r.message.startswith("writing: ")]
    assert bool(warnings) == (name in SINGLE_ROWS)
    requests = [Request.of_prompt(question) for question in QUESTIONS]
    if engine.chat.has_vision:
        requests += [Request.of_prompt(q, [picture(k)]) for k, q in enumerate(QUESTIONS)]
    opened = open_model(folder)
    if name == "internvl_gpt_oss" or "llama4" in name:
        opened[0].float()
    expected = [naive(opened, request) for request in requests]
    monkeypatch.setattr(engine, "_decode_ids", spelled)
    found = engine.generate(requests)
    assert [one.text for one in found if isinstance(one, Generation)] == expected


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(lambda: text_family("Llama"), tmp_path_factory.mktemp("llama") / "model")


def test_a_model_whose_batches_differ_writes_one_row_at_a_time(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inner = hf.LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        output = inner(self, input_ids=input_ids, **more)
        if len(output.logits) > 1:
            output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", forward)
    with caplog.at_level(logging.INFO):
        engine = TransformersEngine(llama, batch_size=8)
    assert (engine.check.way, engine.batch_size) == (SINGLE, 1)
    (warning,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "prompts are not batched" in warning
    assert "differs by" in warning
    assert any("self-check of writing: one row at a time" in r.message for r in caplog.records)


def test_a_model_that_cannot_be_given_its_prompts_is_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = TransformersEngine._inputs

    def wrong(self: TransformersEngine, prompts: Any) -> dict[str, Any]:
        inputs = inner(self, prompts)
        return inputs | {"input_ids": inputs["input_ids"].roll(1, dims=-1)}

    monkeypatch.setattr(TransformersEngine, "_inputs", wrong)
    with pytest.raises(CheckpointError, match="no way of running this llama model"):
        TransformersEngine(llama)


def test_a_family_that_cannot_generate_is_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AttributeError("no cache")

    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", fail)
    with pytest.raises(CheckpointError, match="cannot write with this llama model: found Attr"):
        TransformersEngine(llama)


def test_the_check_leaves_no_trace(llama: Path) -> None:
    engine = TransformersEngine(llama, dtype="bfloat16")
    assert engine.check.way == BATCHED
    assert engine.model.dtype == torch.bfloat16
    assert engine.queue_load().waiting == 0
