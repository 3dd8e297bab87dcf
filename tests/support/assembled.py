"""Tiny parts of every kind, and what an assembly of them has to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.assemble.build import Assembled, AssemblyPlan, assemble
from consomme.assemble.choices import (
    AutoregressiveFusion,
    Connector,
    Fusion,
    LanguageShape,
    PerceiverConnector,
    VisionShape,
)
from consomme.assemble.parts import (
    LanguagePart,
    VisionPart,
    random_language,
    random_vision,
)
from consomme.base.sample import Turn
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.selfcheck import make_images, plain_inputs
from consomme.models.tokenizer import train_tokenizer
from consomme.models.weights import open_vlm

WORDS = ["a large red circle", "what is it? it is a blue square", "### User: ### Assistant:"]
PERCEIVER = PerceiverConnector(latents=5, depth=2, heads=2, head_dim=8, kv_heads=1)


def words(*, has_template: bool = True) -> Any:
    made = train_tokenizer(WORDS * 3, 320)
    if not has_template:
        made.chat_template = None
    return made


def language(family: str = "llama", *, has_template: bool = True, **sizes: Any) -> LanguagePart:
    """A language model whose texts depend on what it reads."""
    shape = LanguageShape(
        **{"family": family, "width": 32, "layers": 3, "heads": 2, "ffn": 48, **sizes}
    )
    torch.manual_seed(1)
    part = random_language(shape, words(has_template=has_template), torch.float32)
    enlarge(part.model)
    return part


def vision(family: str = "siglip", seed: int = 2, **sizes: Any) -> VisionPart:
    torch.manual_seed(seed)
    shape = VisionShape(
        **{
            "family": family, "image_px": 32, "patch_px": 8, "width": 24, "layers": 2, "heads": 2,
            "ffn": 32, **sizes,
        }
    )  # fmt: skip
    part = random_vision(shape, torch.float32)
    enlarge(part.model)
    return part


def enlarge(model: Any) -> None:
    """At the usual scale, a random model hardly depends on its inputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)


def made_of(
    connector: Connector,
    see: VisionPart | None = None,
    say: LanguagePart | None = None,
    ocr: VisionPart | None = None,
    fusion: Fusion | None = None,
    **plan: Any,
) -> Assembled:
    wanted = AssemblyPlan(connector=connector, fusion=fusion or AutoregressiveFusion(), **plan)
    return assemble(wanted, see or vision(), say or language(), ocr, seed=0)


def inputs(model: Any, processor: Any, image: int | None = 0) -> dict[str, Tensor]:
    images = [] if image is None else [make_images()[image]]
    chat = chat_encoder_for(model.config, processor)
    row = chat.encode_prompt([Turn(role="user", content="what is it?")], images)
    return plain_inputs(model, row)


@torch.no_grad()
def check_writes(made: Assembled, folder: Path) -> Any:
    """Cache or none, saved or not: the same; and images count. Returns the opened model."""
    opened, processor = open_vlm(folder)
    rows = [inputs(made.model, made.processor, k) for k in (0, 1)]
    again = [inputs(opened, processor, k) for k in (0, 1)]
    logits = [made.model(**row).logits for row in rows]
    for row, other, found in zip(rows, again, logits, strict=True):
        assert row.keys() == other.keys()
        assert all(torch.equal(row[name], other[name]) for name in row)
        assert torch.equal(opened(**other).logits, found)
        image_tokens = int((row["input_ids"] == made.model.config.image_token_id).sum())
        assert image_tokens % made.num_tokens == 0
        texts = [
            made.model.generate(**row, max_new_tokens=8, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
        assert torch.equal(*texts)
    assert not torch.allclose(logits[0][:, -1], logits[1][:, -1], atol=1e-4)
    return opened


@torch.no_grad()
def text_logits(model: Any, size: int = 24) -> Tensor:
    ids_BT = torch.arange(3, 3 + size)[None]
    logits: Tensor = model(input_ids=ids_BT).logits
    return logits
