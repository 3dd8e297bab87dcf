"""Embeddings of every family: the mean of its image tokens, whatever shares a batch."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support import families
from tests.support.families import FAMILIES, make
from tests.support.messages import to_messages

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.engines.scoring.embedding import ImageEmbedder
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model

pytestmark = pytest.mark.slow
SIZES = [(40, 40), (90, 30), (25, 70), (40, 40), (64, 48)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: make(name, root / name))


def images() -> list[Image.Image]:
    found = []
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        found.append(Image.fromarray(noise))
    return found


class EmbeddingReference:
    """Runs a whole model on an image and a question, and records its language model's inputs."""

    def __init__(self, folder: Path) -> None:
        self.model, self.processor = open_model(folder, torch.float64)
        self.inputs: list[torch.Tensor] = []
        inner = getattr(self.model.model, "language_model", None) or self.model.model.text_model
        inner.register_forward_pre_hook(
            lambda _, args, kwargs: self.inputs.append(kwargs["inputs_embeds"]), with_kwargs=True
        )

    def mean(self, image: Image.Image) -> np.ndarray:
        if type(self.processor).__name__ == "PaliGemmaProcessor":
            text = "<image>what is this?"
        else:
            turns = (Turn(role="user", content="what is this?"),)
            text = self.processor.apply_chat_template(
                to_messages(turns, has_image=True), tokenize=False, add_generation_prompt=True
            )
        inputs = self.processor(text=[text], images=[[image]], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].double()
        config = self.model.config
        token = getattr(config, "image_token_id", None) or config.image_token_index
        with torch.no_grad():
            self.model(**inputs)
        tokens_TW = self.inputs[-1][0][inputs["input_ids"][0] == token]
        assert len(tokens_TW) > 1
        mean_W = tokens_TW.mean(dim=0)
        return (mean_W / mean_W.norm()).numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_embedding_is_the_mean_of_what_the_language_model_gets(folders: Any, name: str) -> None:
    model, processor = open_model(folders(name), torch.float32)
    together = ImageEmbedder(model, chat_encoder_for(model.config, processor)).embed(images())
    alone = ImageEmbedder(model, chat_encoder_for(model.config, processor), batch_values=1).embed(
        images()
    )
    reference = EmbeddingReference(folders(name))
    for image, one, other in zip(images(), together, alone, strict=True):
        assert one.dtype == np.float32
        assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(one, reference.mean(image), atol=2e-4)
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(together[0] - together[3]).max() > 1e-2, "the image makes no difference"


def test_a_batch_that_does_not_fit_is_halved(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = open_model(folders("llava"), torch.float32)
    embedder = ImageEmbedder(model, chat_encoder_for(model.config, processor))
    whole = embedder.embed(images())
    sizes: list[int] = []
    inner = embedder.vision_cache._encode_batch

    def small(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(batch)

    monkeypatch.setattr(embedder.vision_cache, "_encode_batch", small)
    halved = embedder.embed(images())
    assert sizes == [5, 2, 3, 1, 2]
    for one, other in zip(halved, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    words = families.tokenizer("bytes", families.IM, eos_token="<|im_end|>")
    words.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    model = families.hf.LlamaForCausalLM(families.text_config(families.hf.LlamaConfig))
    with pytest.raises(CheckpointError, match="LlamaForCausalLM has no vision encoder"):
        ImageEmbedder(model, chat_encoder_for(model.config, words))
