"""vLLM writes what transformers writes with assembled standard classes."""

from pathlib import Path

import pytest
from PIL import Image
from tests.support.assembled import language, made_of, vision

from consomme.assemble.choices import Connector, MlpConnector, PixelShuffleConnector
from consomme.engines.generation.registry import GENERATION_ENGINES
from consomme.engines.generation.requests import Request, Sampling
from consomme.models.selfcheck import make_images
from consomme.models.weights import save_vlm

WIDE = {"width": 64, "heads": 2, "ffn": 96}
"""vLLM has no heads of fewer than 32 numbers on a CPU."""


@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("connector", "encoder", "family", "side"),
    [
        (MlpConnector(), "clip", "qwen2", None),
        (MlpConnector(), "siglip", "mistral", None),
        # It resizes in another way than Pillow.
        (PixelShuffleConnector(), "siglip", "llama", 32),
    ],
)
def test_texts_are_those_of_transformers(
    connector: Connector, encoder: str, family: str, side: int | None, tmp_path: Path
) -> None:
    made = made_of(connector, vision(encoder, **WIDE), language(family, **WIDE))
    folder = str(save_vlm(tmp_path / "model", made.model, made.processor))
    images: list[Image.Image] = make_images()
    if side:
        images = [image.resize((side, side)) for image in images]
    requests = [Request.of_prompt("what is it?", [image]) for image in images]
    requests.append(Request.of_prompt("star?"))
    texts = []
    for node in ({"name": "transformers"}, {"name": "vllm", "kv_cache_gb": 0.25}):
        engine = GENERATION_ENGINES.build(node)(folder, Sampling(max_tokens=8))
        # A text may end in the middle of a character.
        texts.append([one.text.rstrip("\ufffd") for one in engine.generate(requests)])
        engine.close()
    assert texts[0] == texts[1]
