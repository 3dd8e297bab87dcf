"""Every family generates what its own processor and `generate` of transformers generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.support.families import FAMILIES, noise
from tests.support.messages import to_messages

from consomme.base.sample import Turn
from consomme.engines.generation.requests import Generation, GenerationFailure, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.weights import open_model

pytestmark = pytest.mark.slow
SIZES = [(40, 40), (90, 30), (25, 70), (64, 48)]
QUESTIONS = [
    "describe the image.",
    "star?",
    "what color is the triangle that is below the blue star at the top left?",
    "größer — 日本語",
]


def picture(number: int) -> Image.Image:
    return noise(number, *SIZES[number])


def naive(folder: Path, request: Request) -> str:
    """Text of one request, without our code."""
    model, processor = open_model(folder)
    words = processor.tokenizer
    images = {"images": [list(request.images)]} if request.images else {}
    if getattr(processor, "chat_template", None) is None:
        question = request.turns[0].content
        if images:
            inputs = processor(text=[f"<image>{question}"], **images, return_tensors="pt")
            inputs.pop("labels", None)
        else:
            text = f"{words.bos_token}{question}\n"
            inputs = words([text], add_special_tokens=False, return_tensors="pt")
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    else:
        text = processor.apply_chat_template(
            to_messages(request.turns, has_image=bool(images)),
            tokenize=False,
            add_generation_prompt=True,
        )
        special = not (words.bos_token and text.startswith(words.bos_token))
        inputs = processor(text=[text], **images, return_tensors="pt", add_special_tokens=special)
    ids = model.generate(
        **inputs,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    new = ids[0, inputs["input_ids"].shape[1] :]
    return spelled(new.tolist())


def spelled(ids: list[int]) -> str:
    """Write tokens as numbers: many of a random model's tokens are no valid text."""
    return " ".join(str(token) for token in ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_equal_a_naive_reference_in_any_batch(
    folders: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        Request.of_prompt(question, [picture(number)]) for number, question in enumerate(QUESTIONS)
    ]
    requests += [Request.of_prompt(question) for question in QUESTIONS[:3]]
    expected = [naive(folders(name), request) for request in requests]
    assert len(set(expected)) >= 4, "texts must depend on the request"
    for size in (1, 64):
        engine = TransformersEngine(folders(name), Sampling(max_tokens=10), batch_size=size)
        monkeypatch.setattr(engine, "_decode_ids", spelled)
        found = engine.generate(requests)
        assert [one.text for one in found if isinstance(one, Generation)] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_that_cannot_be_encoded_fails_alone(folders: Any, name: str) -> None:
    engine = TransformersEngine(folders(name), Sampling(max_tokens=4))
    special = engine.chat.special[-1]
    requests = [
        Request.of_prompt("star?", [picture(0)]),
        Request.of_prompt(f"what is {special}?", [picture(0)]),
        Request.of_prompt("star " * 5000, [picture(0)]),
        Request.of_prompt("star?", [Image.new("RGB", (3, 900))]),
    ]
    found = engine.generate(requests)
    assert isinstance(found[0], Generation)
    assert [one.reason for one in found[1:3] if isinstance(one, GenerationFailure)] == [
        "text_not_encodable",
        "sequence_too_long",
    ]
    if "qwen" in name:
        # Qwen's processors refuse aspect ratios above 200.
        assert isinstance(found[3], GenerationFailure)
        assert found[3].reason == "image_not_encodable"
        assert "3 x 900" in found[3].detail


def test_paligemma_takes_one_question(folders: Any) -> None:
    turns = (
        Turn(role="user", content="star?"),
        Turn(role="assistant", content="green"),
        Turn(role="user", content="why?"),
    )
    (found,) = TransformersEngine(folders("paligemma")).generate([Request(turns=turns)])
    assert isinstance(found, GenerationFailure)
    assert found.reason == "text_not_encodable"
