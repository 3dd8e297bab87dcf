"""Pictures to measure dedup with, and the usual edits of copied pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from consomme.datasets import emoji, scenes
from consomme.vision.decode import DecodeProblem, decode

Picture = Image.Image


def saved(picture: Picture, file_format: str, **options: Any) -> Picture:
    """Encode and decode."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return decoded(buffer.getvalue())


def resized(picture: Picture, factor: float) -> Picture:
    """Resize with a Lanczos filter."""
    size = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def cropped(picture: Picture, fraction: float) -> Picture:
    """Crop a share of width and height, half of it on each side."""
    width, height = picture.size
    x, y = max(1, round(width * fraction / 2)), max(1, round(height * fraction / 2))
    return picture.crop((x, y, width - x, height - y))


def framed(picture: Picture) -> Picture:
    """Add a black border of 3 %."""
    return ImageOps.expand(picture, max(1, round(picture.width * 0.03)), "black")


def marked(picture: Picture) -> Picture:
    """Draw a watermark in a corner."""
    marked = picture.copy()
    width, height = marked.size
    ImageDraw.Draw(marked).text(
        (width * 0.08, height * 0.8),
        "shop.example",
        fill="white",
        stroke_width=1,
        stroke_fill="black",
        font_size=max(8, width // 10),
    )
    return marked


EDITS: Mapping[str, Sequence[Callable[[Picture], Picture]]] = {
    "resize": [lambda p: resized(p, 0.5), lambda p: resized(p, 1.5)],
    "jpeg90": [lambda p: saved(p, "JPEG", quality=90)],
    "jpeg60": [lambda p: saved(p, "JPEG", quality=60)],
    "jpeg30": [lambda p: saved(p, "JPEG", quality=30)],
    "reencode": [lambda p: saved(p, "PNG"), lambda p: saved(p, "WEBP", quality=75)],
    "crop2": [lambda p: cropped(p, 0.02)],
    "crop5": [lambda p: cropped(p, 0.05)],
    "crop10": [lambda p: cropped(p, 0.10)],
    "flip": [ImageOps.mirror],
    "brightness": [
        lambda p: ImageEnhance.Brightness(p).enhance(1.1),
        lambda p: ImageEnhance.Brightness(p).enhance(0.9),
    ],
    "rotate2": [lambda p: p.rotate(2, Image.Resampling.BICUBIC, fillcolor="white")],
    "border": [framed],
    "watermark": [marked],
    "grey": [lambda p: p.convert("L")],
}
WHOLE = ("resize", "jpeg90", "jpeg60", "jpeg30", "reencode", "crop2", "brightness")
"""Edits after which a copy should still be found; recall of the others is only reported."""


def decoded(data: bytes) -> Picture:
    """Decode a picture that is known to be valid."""
    picture = decode(data)
    if isinstance(picture, DecodeProblem):
        raise TypeError(picture)
    return picture


@cache
def bases(kind: str) -> Sequence[Picture]:
    """Return the pictures to edit: 276 emoji, 300 scenes or 200 clouds."""
    if kind == "emoji":
        return [decoded(entry.image) for entry in emoji.load("noto")[::6]]
    if kind == "scenes":
        return [scenes.render(scenes.make_scene(seed)).convert("RGB") for seed in range(300)]
    return [cloud(seed) for seed in range(200)]


def cloud(seed: int, side: int = 192) -> Picture:
    """Make coloured noise whose amplitude falls with the frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1.0
    waves = rng.normal(size=(3, side, side)) + 1j * rng.normal(size=(3, side, side))
    pixels = np.fft.ifft2(waves / frequency).real[:, :, : side * 3 // 4]
    levels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
