"""Decoding speed at the size a model needs, against Pillow at full size.

python -m tests.benchmarks.decode
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from consomme.vision.decode import DecodeProblem, decode

SIZE = (1280, 960)
SIDE = 448
"""Side length in pixels of a vision encoder's input."""

ROUNDS = 7


def pictures(number: int = 6) -> list[bytes]:
    """Make JPEGs with smooth areas and some grain, with about the file size of photographs."""
    found = []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 255, (SIZE[1] // 32, SIZE[0] // 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
        grain = rng.integers(-12, 12, (SIZE[1], SIZE[0], 1))
        image = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=60)
        found.append(out.getvalue())
    return found


def to_side(image: Image.Image | DecodeProblem) -> Image.Image:
    """Resize to the encoder's input, as an image processor does."""
    assert isinstance(image, Image.Image)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def with_pillow(data: bytes) -> Image.Image:
    """Decode at full size."""
    return to_side(Image.open(io.BytesIO(data)).convert("RGB"))


def with_consomme(data: bytes) -> Image.Image:
    """Decode at the size that is needed, then resize."""
    return to_side(decode(data, min_side_px=SIDE))


def with_consomme_whole(data: bytes) -> Image.Image:
    """Decode at full size."""
    return to_side(decode(data))


def rate(work: Callable[[bytes], Any], data: list[bytes]) -> float:
    """Return pictures per second of processor time."""
    began = time.process_time()
    for item in data:
        work(item)
    return len(data) / (time.process_time() - began)


def measure() -> list[dict[str, Any]]:
    """Measure all decoders in turn, round by round."""
    data = pictures()
    sides = (with_pillow, with_consomme, with_consomme_whole)
    for side in sides:
        rate(side, data[:1])
    rates = [[rate(side, data) for side in sides] for _ in range(ROUNDS)]
    pillow, small, whole = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(row[1] / row[0] for row in rates)
    ratio_whole = statistics.median(row[2] / row[0] for row in rates)
    how = (
        f"JPEGs of {SIZE[0]}x{SIZE[1]}, {len(data[0]) // 1000} kB, decoded and resized to "
        f"{SIDE}x{SIDE}; processor time of one core, median of {ROUNDS} rounds"
    )
    baseline = "Pillow, full decode and resize"
    return [
        _row("decode.vs_pillow", ratio, "ratio", baseline, f"min_side_px={SIDE}; {how}"),
        _row("decode.vs_pillow_whole", ratio_whole, "ratio", baseline, f"at full size; {how}"),
        _row("decode.images_per_s", small, "images/s", "", f"min_side_px={SIDE}; {how}"),
        _row("decode.images_per_s_whole", whole, "images/s", "", f"at full size; {how}"),
        _row("decode.images_per_s_pillow", pillow, "images/s", "", f"{baseline}; {how}"),
    ]


def _row(key: str, value: float, unit: str, baseline: str, how: str) -> dict[str, Any]:
    return {"key": key, "value": round(value, 4), "unit": unit, "baseline": baseline, "how": how}


if __name__ == "__main__":
    for found in measure():
        sys.stdout.write(f"{found['key']}: {found['value']} {found['unit']}  ({found['how']})\n")
