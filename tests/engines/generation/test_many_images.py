"""Prompts with any number of images, in their places: texts equal plain `generate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.generation.test_families import spelled
from tests.engines.scoring.test_many_images import NEW, ONE_IMAGE_ONLY, folder_of
from tests.support.chat_server import serving
from tests.support.families import FAMILIES
from tests.support.image_conversations import CASES, PlainReference, images_of

from consomme.engines.generation.openai import OpenAIEngine
from consomme.engines.generation.requests import Generation, GenerationFailure, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.writing_check import BATCHED

pytestmark = pytest.mark.slow
MAX_TOKENS = 6
QUICK = ("llava", "qwen2_vl", "gemma3")
PROMPTS = [(case.name, case.turns[:-1], images_of(case)) for case in CASES]


def requests() -> list[Request]:
    return [Request(turns=turns, images=images) for _, turns, images in PROMPTS]


def expected_of(folder: Path, name: str) -> list[str]:
    """Texts by the family's own processor and `generate`, in float64, one prompt at a time."""
    reference = PlainReference(folder, name)
    words, texts = reference.words, []
    for _, turns, images in PROMPTS:
        inputs = reference.inputs(turns, images, add_generation_prompt=True)
        with torch.no_grad():
            ids_1T = reference.model.generate(
                **inputs,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        texts.append(spelled(ids_1T[0, inputs["input_ids"].shape[1] :].tolist()))
    return texts


def in_each_suite(name: str) -> Any:
    """The quick families are tried in every suite, the others in the long one."""
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "name", [in_each_suite(one) for one in (*FAMILIES, *NEW) if one not in ONE_IMAGE_ONLY]
)
def test_texts_equal_a_naive_reference_in_any_batch(
    folders: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(name, folders, tmp_path)
    expected = expected_of(folder, name)
    assert len(set(expected)) >= 3, "texts must depend on the images"
    engine = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS))
    monkeypatch.setattr(engine, "_decode_ids", spelled)
    for size in (engine.batch_size, 1):
        engine.batch_size = size
        found = engine.generate(requests())
        for (case, _, _), one, text in zip(PROMPTS, found, expected, strict=True):
            assert isinstance(one, Generation), (case, one)
            assert one.text == text, (case, size)


def test_an_endpoint_gets_each_image_where_it_stands(folders: Any) -> None:
    served = TransformersEngine(folders("qwen2_vl"), Sampling(max_tokens=MAX_TOKENS))
    expected = served.generate(requests())
    with serving(served) as server:
        engine = OpenAIEngine(server.url, "served", Sampling(max_tokens=MAX_TOKENS), max_retries=0)
        try:
            assert engine.generate(requests()) == expected
        finally:
            engine.close()


def break_batches(monkeypatch: pytest.MonkeyPatch, *, alone: bool) -> None:
    """Let a processor's images come out in another order; of single rows too, if `alone`."""
    inner = TransformersEngine._inputs

    def wrong(self: TransformersEngine, prompts: Sequence[Any]) -> dict[str, Any]:
        inputs = inner(self, prompts)
        pixels = inputs.get("pixel_values")
        if pixels is not None and len(pixels) > 2 and (alone or len(prompts) > 1):
            inputs["pixel_values"] = pixels.flip(0)
        return inputs

    monkeypatch.setattr(TransformersEngine, "_inputs", wrong)


def test_what_goes_wrong_with_several_images_is_noticed(
    folders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folders("llava")
    expected = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS)).generate(requests())
    break_batches(monkeypatch, alone=False)
    engine = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS))
    assert engine.check.way == BATCHED, "two images of two prompts are as they were"
    assert engine.generate(requests()[2:]) == expected[2:]
    assert "writing about several images: this llava model runs with one row" in caplog.text
    assert engine.generate(requests()[1:2]) == expected[1:2]
    monkeypatch.undo()
    break_batches(monkeypatch, alone=True)
    engine = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS))
    found = engine.generate(requests())
    assert found[:2] == expected[:2]
    for one in found[2:]:
        assert isinstance(one, GenerationFailure)
        assert one.reason == "conversation_unsupported"
        assert "no way of running this llava model" in one.detail


def test_a_family_of_one_image_refuses_two(folders: Any) -> None:
    engine = TransformersEngine(folders("paligemma"), Sampling(max_tokens=MAX_TOKENS))
    for request in [one for one in requests() if len(one.images) > 1]:
        (found,) = engine.generate([request])
        assert isinstance(found, GenerationFailure)
        assert found.reason == "conversation_unsupported", found
