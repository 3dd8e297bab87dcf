"""Samples for the tests of taggers."""

from __future__ import annotations

from typing import Any

from PIL import Image

from consomme.base.sample import ImageFile, Sample, Turn
from consomme.curate.tag.tagger import TaggerInput


def tagger_input(*said: str, name: str = "a", image: bytes = b"", **meta: Any) -> TaggerInput:
    """One sample: a caption, or questions and answers in turn."""
    turns = [
        Turn(role="user" if k % 2 == 0 and len(said) > 1 else "assistant", content=text)
        for k, text in enumerate(said)
    ]
    sample = Sample(
        sample_id=name,
        images=(ImageFile(data=image, name="a.png"),),
        turns=tuple(turns),
        source="s",
        meta=meta,
    )
    return TaggerInput(sample=sample, images=(Image.new("RGB", (1, 1)),))
