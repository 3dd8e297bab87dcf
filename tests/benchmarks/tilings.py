"""What tilings cost: image tokens by size of picture, time to prepare one, and time to count.

python -m tests.benchmarks.tilings
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from consomme.base.sample import Turn
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.imports import import_transformers
from consomme.models.token_counts import TokenCounter
from consomme.vision.tiling.registry import tiling_of

SIDE = 336
TOKENS = 144
"""Of a tile: 24 x 24 patches of 14 pixels, four of which are one token, as in POINTS."""

SIZES = ((336, 336), (640, 480), (1280, 720), (1080, 1920), (2480, 3508))
"""A thumbnail, a photo of the web, a screen, a phone's screen, a page at 300 dpi."""

TIMED = (1280, 960)
ROUNDS = 7
TILINGS: dict[str, dict[str, Any]] = {
    "square": {"name": "square"},
    "split": {"name": "split"},
    "dynamic": {"name": "dynamic"},
    "dynamic_of_points": {
        "name": "dynamic",
        "max_tiles": 8,
        "tie": "nearest",
        "thumbnail": "always",
        "resample": "bilinear",
    },
    "catty": {"name": "catty"},
    "native": {"name": "native", "tile_px": 980, "min_px": 378, "merge": 2},
}
TURNS = (
    Turn(role="user", content="describe the image."),
    Turn(role="assistant", content="a large red circle at the top left"),
)


def picture(width: int, height: int) -> Image.Image:
    """Return a picture with smooth areas and some grain."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 32, width // 32, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.integers(-12, 12, (height, width, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def tokens() -> Iterator[dict[str, Any]]:
    """Count the tokens of pictures of usual sizes."""
    for name, node in TILINGS.items():
        # Native patches are 14 pixels too, and four of them one token.
        tiling = tiling_of(node if name == "native" else {**node, "tile_px": SIDE})
        per_tile = None if name == "native" else TOKENS
        for width, height in SIZES:
            plan = tiling.plan(width, height)
            how = f"{plan.grid[0]} x {plan.grid[1]} tiles of {plan.sizes[0]}"
            how += ", and a thumbnail" if plan.thumbnail else ""
            value = tiling.num_tokens(width, height, per_tile)
            yield _row(f"tilings.tokens.{name}.{width}x{height}", value, "tokens", "", how)


def seconds(work: Callable[[], Any]) -> float:
    """Return processor time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turn(*works: Callable[[], Any]) -> list[float]:
    """Return the median processor time of each, measured in turn."""
    for work in works:
        work()
    rounds = [[seconds(work) for work in works] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def times() -> Iterator[dict[str, Any]]:
    """Time the preparation of one picture, beside the processors of transformers."""
    hf = import_transformers()
    from consomme.models.tiling.image_processor import ConsommeTilingImageProcessor

    image = picture(*TIMED)
    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    square = {"height": SIDE, "width": SIDE}
    theirs = {
        "square": hf.CLIPImageProcessorPil(size=square, do_center_crop=False, **scale),
        "dynamic": hf.GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, **scale),
    }
    how = f"one picture of {TIMED[0]}x{TIMED[1]}; processor time of one core, median of {ROUNDS}"
    for name, node in TILINGS.items():
        given = node if name == "native" else {**node, "tile_px": SIDE}
        if name in theirs:
            given = {**given, "resample": "bicubic"}
        ours = ConsommeTilingImageProcessor(tiling=given, **scale)

        def prepare(processor: Any = ours) -> Any:
            return processor([image], return_tensors="pt")

        if name not in theirs:
            (found,) = in_turn(prepare)
            yield _row(f"tilings.ms.{name}", found * 1000, "ms", "", how)
            continue
        found, other = in_turn(prepare, lambda p=theirs[name]: p([image], return_tensors="pt"))
        who = type(theirs[name]).__name__
        yield _row(f"tilings.ms.{name}", found * 1000, "ms", "", how)
        yield _row(
            f"tilings.vs_family.{name}",
            other / found,
            "ratio",
            f"{who}, {other * 1000:.1f} ms",
            how,
        )


def counts() -> Iterator[dict[str, Any]]:
    """Time counting the tokens of a conversation by the size of its picture."""
    from consomme.models.tiling.image_processor import ConsommeTilingImageProcessor
    from consomme.models.tiling.processor import ConsommeTilingProcessor
    from consomme.models.weights import open_processor
    from consomme.storage.model_folder import model_folder

    config, nano = open_processor(model_folder("package://models/nano"))
    processor = ConsommeTilingProcessor(
        ConsommeTilingImageProcessor(tiling={"name": "catty", "tile_px": SIDE}),
        nano.tokenizer,
        tokens_per_tile=TOKENS,
        chat_template=nano.chat_template,
    )
    chat = chat_encoder_for(config, processor)
    counter = TokenCounter(chat)
    assert not counter.refused, counter.refused
    image = picture(*TIMED)
    counted, encoded = in_turn(
        lambda: [counter.count(TURNS, [TIMED]) for _ in range(10)],
        lambda: [chat.encode(TURNS, [image]) for _ in range(10)],
    )
    how = f"a caption of a {TIMED[0]}x{TIMED[1]} picture, catty; processor time, median of {ROUNDS}"
    baseline = f"encoding it with its picture, {encoded * 100:.1f} ms"
    yield _row("tilings.count_ms", counted * 100, "ms", "", how)
    yield _row("tilings.count_vs_encode", encoded / counted, "ratio", baseline, how)


def measure() -> Iterator[dict[str, Any]]:
    """Yield all figures."""
    yield from tokens()
    yield from times()
    yield from counts()


def _row(key: str, value: float, unit: str, baseline: str, how: str) -> dict[str, Any]:
    return {"key": key, "value": round(value, 4), "unit": unit, "baseline": baseline, "how": how}


if __name__ == "__main__":
    for found in measure():
        sys.stdout.write(f"{found['key']}: {found['value']} {found['unit']}  ({found['how']})\n")
