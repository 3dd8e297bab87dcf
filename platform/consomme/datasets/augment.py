"""Augment emoji pictures for training: random geometry, colour and background.

Pictures are never mirrored, because the names of arrows, hands and letters would become wrong.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter


def augment_emoji(rgba: NDArray[np.uint8], rng: random.Random, out_px: int) -> NDArray[np.uint8]:
    """Return one augmented picture: rotated, scaled, shifted, recoloured, on a random background.

    Args:
        rgba: uint8 (64, 64, 4).
        rng: Source of all random choices.
        out_px: Side of the square output.

    Returns:
        uint8 (out_px, out_px, 3).
    """
    side = rgba.shape[0]
    image = Image.fromarray(rgba, "RGBA").convert("RGBa")
    angle = rng.gauss(0, 9)
    scale = side / out_px * rng.uniform(0.92, 1.35)
    stretch = rng.uniform(0.9, 1.1)
    c, s = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    shift_x, shift_y = rng.gauss(0, 2.5), rng.gauss(0, 2.5)
    half = out_px / 2
    a, b = c * stretch, s
    d, e = -s, c / stretch
    matrix = (
        a, b, side / 2 + shift_x - a * half - b * half,
        d, e, side / 2 + shift_y - d * half - e * half,
    )  # fmt: skip
    view = image.transform(
        (out_px, out_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    ).convert("RGBA")
    flat = Image.new("RGBA", (out_px, out_px), (*background_color(rng), 255))
    picture = Image.alpha_composite(flat, view).convert("RGB")
    if rng.random() < 0.5:
        hsv = np.array(picture.convert("HSV"))
        hsv[..., 0] = hsv[..., 0] + np.uint8(int(rng.gauss(0, 7)) % 256)
        picture = Image.fromarray(hsv, "HSV").convert("RGB")
    picture = ImageEnhance.Color(picture).enhance(rng.choice((0.0, *[rng.uniform(0.5, 1.5)] * 14)))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.7, 1.3))
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    return np.asarray(picture)


def background_color(rng: random.Random) -> tuple[int, int, int]:
    """Pick a background: white, light, or occasionally any colour."""
    kind = rng.random()
    if kind < 0.5:
        return (255, 255, 255)
    low = 190 if kind < 0.85 else 0
    return (rng.randint(low, 255), rng.randint(low, 255), rng.randint(low, 255))


def plain_view(rgba: NDArray[np.uint8], out_px: int) -> NDArray[np.uint8]:
    """Composite the picture on white and resize it, as for evaluation.

    Returns:
        uint8 (out_px, out_px, 3).
    """
    image = Image.fromarray(rgba, "RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(flat.resize((out_px, out_px), Image.Resampling.BICUBIC))
