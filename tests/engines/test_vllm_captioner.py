"""vLLM and transformers must write the same text for the same picture, from the same folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consomme.base.errors import CheckpointError, DataError
from consomme.engines.vllm_captioner import Generation, VLLMCaptioner
from consomme.models.debug import make_debug_vlm

pytestmark = pytest.mark.vllm
PROMPT = "<bos><user><image>describe the image.<assistant>"
MAX_TOKENS = 12


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Noise over a coloured ground, each picture different."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 128, (count, 1, 1, 3))
    noise = rng.integers(0, 128, (count, 48, 48, 3))
    return [Image.fromarray(picture) for picture in (ground + noise).astype(np.uint8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_debug_vlm(tmp_path_factory.mktemp("debug") / "model")


@pytest.fixture(scope="module")
def captioner(folder: Path):
    engine = VLLMCaptioner(str(folder), max_tokens=MAX_TOKENS, max_model_len=4096, kv_cache_gb=0.25)
    yield engine
    engine.close()


def transformers_greedy(folder: Path, images: list[Image.Image]) -> list[tuple[str, int]]:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    written = []
    for image in images:
        inputs = processor(images=image.convert("RGB"), text=PROMPT, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        written.append((processor.tokenizer.decode(new, skip_special_tokens=True), len(new)))
    return written


def captions(captioner: VLLMCaptioner, images: list[Image.Image]) -> list[Generation]:
    return captioner.caption(images, [PROMPT] * len(images), list(range(len(images))))


def test_greedy_text_equals_transformers(captioner: VLLMCaptioner, folder: Path) -> None:
    images = pictures(8)
    images[0] = images[0].convert("L")
    images[1] = images[1].resize((90, 47))

    written = captions(captioner, images)
    assert captions(captioner, []) == []

    expected = transformers_greedy(folder, images)
    assert [(g.text, g.num_tokens) for g in written] == expected
    assert len({g.text for g in written}) > 4, "the text must depend on the picture"
    assert {g.finish_reason for g in written} <= {"stop", "length"}
    assert captioner.version.startswith("vllm ")


def test_text_does_not_depend_on_the_batch(captioner: VLLMCaptioner) -> None:
    images = pictures(5, seed=3)

    together = captions(captioner, images)
    alone = [captions(captioner, [image])[0] for image in images]

    assert together == alone


def test_lists_of_different_length_are_an_error(captioner: VLLMCaptioner) -> None:
    with pytest.raises(DataError, match="2 images, 1 prompts"):
        captioner.caption(pictures(2), [PROMPT], [0, 1])


def test_a_prompt_that_is_too_long_is_an_error_and_the_engine_survives(
    captioner: VLLMCaptioner,
) -> None:
    with pytest.raises(DataError, match="refused a batch"):
        captioner.caption(pictures(2), [PROMPT, PROMPT + "a large " * 2000], [0, 1])

    images = pictures(2, seed=5)
    assert len(captions(captioner, images)) == 2


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        VLLMCaptioner(str(tmp_path / "nothing"))
