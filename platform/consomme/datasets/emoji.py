"""The embedded emoji pictures: six open styles, one of them held out, with CLDR names.

`twemoji` is the held-out style: no shipped model was trained on it, so naming its pictures measures
recognition rather than memory. Licences are in `data/LICENSES.md`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

TRAIN_STYLES = ("noto", "noto-v1", "openmoji", "fluent-emoji-flat", "emojione")
HELD_OUT_STYLE = "twemoji"
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji in one style."""

    sample_id: str
    style: str
    code: str
    """Code points in hexadecimal, joined by dashes, without the variation selector."""

    name: str
    """English CLDR short name."""

    keywords: tuple[str, ...]
    names: dict[str, str]
    """CLDR short names in other languages, by language code."""

    image: bytes
    """WebP with alpha, 64 px."""


def shard(style: str) -> Path:
    """Return the path of the shipped Parquet shard of a style."""
    return DATA / f"emoji-{style}.parquet"


@cache
def load(style: str) -> tuple[Emoji, ...]:
    """Read one style, in Unicode order."""
    rows = pq.read_table(shard(style)).to_pylist()
    emojis = []
    for row in rows:
        meta = json.loads(row["meta"])
        emojis.append(
            Emoji(
                sample_id=row["sample_id"],
                style=style,
                code=row["sample_id"].removeprefix(f"{style}-"),
                name=row["caption"],
                keywords=tuple(meta["keywords"]),
                names=meta["names"],
                image=row["image"]["bytes"],
            )
        )
    return tuple(emojis)


def pixels(emojis: Sequence[Emoji]) -> NDArray[np.uint8]:
    """Decode pictures to RGBA pixels.

    Returns:
        uint8 array (len(emojis), 64, 64, 4).
    """
    return np.stack([np.asarray(Image.open(io.BytesIO(e.image)).convert("RGBA")) for e in emojis])
