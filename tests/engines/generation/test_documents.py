"""The beginning of a document is continued as its plain text is, without the chat template."""

from typing import Any

import pytest
import torch
from tests.engines.generation.test_families import spelled
from tests.engines.scoring.test_many_images import DOCUMENT, MARKS, ONE_IMAGE_ONLY
from tests.support.families import FAMILIES
from tests.support.image_conversations import Case, PlainReference, images_of

from consomme.base.sample import ImageRef, Turn
from consomme.engines.generation.openai import OpenAIEngine
from consomme.engines.generation.requests import Generation, GenerationFailure, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.chat_prefix import chat_encoder_for

pytestmark = pytest.mark.slow
MAX_TOKENS = 6
QUICK = ("llava", "qwen2_vl", "gemma3")
IMAGES = images_of(Case(name="", turns=(), num_images=3))


def beginning(*parts: str | int) -> Request:
    """Of a document."""
    shown = sorted({part for part in parts if isinstance(part, int)})
    content = tuple(
        ImageRef(shown.index(part)) if isinstance(part, int) else part for part in parts
    )
    images = tuple(IMAGES[index] for index in shown)
    return Request(turns=(Turn(role="assistant", content=content),), images=images)


def in_each_suite(name: str) -> Any:
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "name", [in_each_suite(name) for name in sorted(set(FAMILIES) - ONE_IMAGE_ONLY)]
)
def test_it_is_continued_as_the_plain_text_is(
    folders: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders(name)
    reference = PlainReference(folder, name)
    mark = MARKS.get(name, "<image>")
    prompts = [DOCUMENT[:2], DOCUMENT[:-1], DOCUMENT[1:4], DOCUMENT[1:]]
    expected = []
    for parts in prompts:
        inputs = reference.processor(
            text=["".join(part if isinstance(part, str) else mark for part in parts)],
            images=[[IMAGES[part] for part in parts if isinstance(part, int)]],
            return_tensors="pt",
        )
        dtype = reference.model.dtype
        inputs = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
        with torch.no_grad():
            ids_1T = reference.model.generate(
                **inputs,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                eos_token_id=reference.words.eos_token_id,
                pad_token_id=reference.words.pad_token_id,
            )
        expected.append(spelled(ids_1T[0, inputs["input_ids"].shape[1] :].tolist()))
    engine = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS))
    monkeypatch.setattr(engine, "_decode_ids", spelled)
    found = engine.generate([beginning(*parts) for parts in prompts])
    assert [one.text for one in found if isinstance(one, Generation)] == expected
    assert len(set(expected)) >= 2, "texts must depend on what is given"


@pytest.mark.parametrize("name", QUICK)
def test_what_is_continued_is_the_beginning_of_what_is_trained_on(folders: Any, name: str) -> None:
    reference = PlainReference(folders(name), name)
    chat = chat_encoder_for(reference.model.config, reference.processor, {})
    whole = (Turn(role="assistant", content=beginning(*DOCUMENT).turns[0].content),)
    trained = chat.encode(whole, IMAGES)
    begin, _ = trained.spans[-1]
    prompt = beginning(*DOCUMENT[:-1])
    asked = chat.encode_prompt(prompt.turns, prompt.images)
    assert asked.input_ids == trained.input_ids[:begin]


def test_an_endpoint_of_chats_refuses_it() -> None:
    engine = OpenAIEngine("http://127.0.0.1:9/v1", "any", max_retries=0)
    try:
        (found,) = engine.generate([beginning(*DOCUMENT)])
    finally:
        engine.close()
    assert isinstance(found, GenerationFailure)
    assert found.reason == "conversation_unsupported"
    assert "document" in found.detail


def test_a_text_without_images_is_no_document() -> None:
    with pytest.raises(ValueError, match="ends with a user's turn, found: assistant"):
        beginning("a walk.")
