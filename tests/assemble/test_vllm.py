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
    ("connector", "encoder", "family", "side", "is_split"),
    [
        (MlpConnector(), "clip", "qwen2", None, False),
        (MlpConnector(), "siglip", "mistral", None, False),
        # These two resize in another way than Pillow, which images of one color do not show.
        (MlpConnector(), "siglip", "llama", None, True),
        (PixelShuffleConnector(), "siglip", "llama", 32, False),
    ],
)
def test_texts_are_those_of_transformers(
    connector: Connector,
    encoder: str,
    family: str,
    side: int | None,
    is_split: bool,
    tmp_path: Path,
) -> None:
    say, see = language(family, **WIDE), vision(encoder, **WIDE)
    made = made_of(connector, see, say, is_split=is_split)
    folder = str(save_vlm(tmp_path / "model", made.model, made.processor))
    images: list[Image.Image] = make_images()
    if side:
        images = [image.resize((side, side)) for image in images]
    if is_split:
        images = [Image.new("RGB", (64, 64), color) for color in ("red", "white", "teal")]
    requests = [Request.of_prompt("what is it?", [image]) for image in images]
    requests.append(Request.of_prompt("star?"))
    texts = []
    for node in ({"name": "transformers"}, {"name": "vllm", "kv_cache_gb": 0.25}):
        engine = GENERATION_ENGINES.build(node)(folder, Sampling(max_tokens=8))
        # A text may end in the middle of a character.
        texts.append([one.text.rstrip("\ufffd") for one in engine.generate(requests)])
        engine.close()
    assert texts[0] == texts[1]
