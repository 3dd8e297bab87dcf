"""Write the debug model: a tiny seeded VLM for tests and smoke recipes, which is not trained.

Its random weights are scaled up, so that its texts and scores depend on the image. At the usual
scale a random model repeats one token, and a test of an engine would show nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from consomme.models.assembly import LlavaShape, build_llava, build_processor
from consomme.models.tokenizer import train_tokenizer
from consomme.models.weights import save_vlm


def make_debug_vlm(
    folder: str | Path,
    seed: int = 0,
    num_layers: int = 12,
    *,
    width: int = 64,
    image_px: int = 32,
    vocab_size: int = 384,
    scale: float = 5.0,
) -> Path:
    """Write the debug model as a Hugging Face folder; a second and under 3 MB.

    Args:
        folder: Where to write; an older folder there is replaced.
        seed: Of the weights. The same seed gives the same weights.
        num_layers: Layers of the language model.
        width: Width of the vision encoder and of the language model; a multiple of 32, which is the
            head size (vLLM has no smaller one on a CPU).
        image_px: Side of the image it takes, a multiple of 8; the patches are 8 px.
        vocab_size: Tokens; at least 262, for 256 bytes and the special ones.
        scale: Factor on the matrices of the initialised model.

    Returns:
        The folder.
    """
    texts = list(_corpus())
    tokenizer = train_tokenizer(texts, vocab_size)
    shape = LlavaShape(
        image_px=image_px,
        patch_px=8,
        vision_width=width,
        vision_layers=2,
        vision_heads=4,
        text_width=width,
        text_layers=num_layers,
        text_heads=width // 32,
        text_ffn=2 * width,
        vocab_size=len(tokenizer),
    )
    model = build_llava(shape, tokenizer, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(scale)
        # It generates tokens of the corpus only, so its texts are readable.
        used = {token for text in texts for token in tokenizer.encode(text + "<end>")}
        unused = [token for token in range(len(tokenizer)) if token not in used]
        model.lm_head.weight[unused] = 0.0
    return save_vlm(folder, model, build_processor(shape, tokenizer))


def _corpus() -> Iterator[str]:
    """A few hundred sentences about shapes."""
    yield "describe the image."
    for color in ("red", "green", "blue", "yellow", "black"):
        for shape in ("circle", "square", "triangle", "star"):
            for place in ("top left", "bottom right"):
                yield f"a large {color} {shape} at the {place}, left of a small {color} {shape}."
                yield f"what color is the {shape}? {color}"
