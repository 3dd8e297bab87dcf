"""Tokens counted from sizes are those of the encoded conversation, whatever the family."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
from tests.support.families import FAMILIES, noise
from tests.support.more_families import MORE_FAMILIES, TEXT_FAMILIES
from tests.support.table_families import MADE_HERE
from tests.support.tiled import TILED

from consomme.base.errors import DataError
from consomme.base.sample import ImageRef, Turn
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.token_counts import TokenCounter

NO_ENCODER = ("blip2", "gemma3n", "fast_vlm", "perception_lm")
"""Families that consomme refuses, or that need a package that is not installed."""

EVERY = FAMILIES | MORE_FAMILIES | MADE_HERE | TILED
ALL = {
    name: build
    for name, build in EVERY.items()
    if name not in NO_ENCODER and name not in TEXT_FAMILIES and name != "deepseek_v3"
}
QUICK = ("qwen2_vl", "idefics3", "llava", "catty_llava", "separated_llava", "native_pixtral")
TOLD = {*QUICK, "internvl", "gemma3", "split_llava", "square_llava", "catty_internvl"}
"""Families whose processor's word is taken."""

ANSWER = Turn(role="assistant", content="a large red circle")
SHAPES = {
    "one": (1, (Turn(role="user", content="what color is it?"), ANSWER)),
    "two": (2, (Turn(role="user", content="what color is it?"), ANSWER)),
    "turns": (
        2,
        (
            Turn(role="user", content=(ImageRef(0), "star?")),
            ANSWER,
            Turn(role="user", content=("and this", ImageRef(1), "one?")),
            ANSWER,
        ),
    ),
    "text": (0, (Turn(role="user", content="star?"), ANSWER)),
}


@functools.cache
def encoder(name: str) -> Any:
    model, processor = ALL[name]()
    return chat_encoder_for(model.config, processor)


def sizes(draw: random.Random, count: int) -> list[tuple[int, int]]:
    def side() -> int:
        return draw.choice([draw.randint(1, 60), draw.randint(32, 400), draw.randint(300, 900)])

    return [(side(), side()) for _ in range(count)]


def compare(name: str, num_cases: int) -> TokenCounter:
    chat = encoder(name)
    counter = TokenCounter(chat)
    draw = random.Random(name)
    num_compared = 0
    for _ in range(num_cases):
        for num_images, turns in SHAPES.values():
            some = sizes(draw, num_images)
            images = [noise(k, *size) for k, size in enumerate(some)]
            try:
                row = chat.encode(turns, images)
            except DataError as error:
                # What is refused is refused for its size.
                with pytest.raises(type(error)):
                    counter.count(turns, some)
                continue
            found = counter.count(turns, some)
            assert (found.num_tokens, found.num_labelled) == (len(row.input_ids), row.num_tokens), (
                some
            )
            num_compared += 1
    assert num_compared > num_cases // 2
    return counter


@pytest.mark.parametrize("name", QUICK)
def test_counts_of_sizes_are_those_of_the_encoded_conversation(name: str) -> None:
    counter = compare(name, 12)
    assert (counter.refused == "") == (name in TOLD), counter.refused


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in QUICK])
def test_counts_of_every_family(name: str) -> None:
    compare(name, 12)


def test_no_picture_is_prepared_where_the_processor_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = encoder("catty_llava")
    counter = TokenCounter(chat)
    assert not counter.refused

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was prepared")

    monkeypatch.setattr(type(chat._processing.image_processor), "__call__", fail)
    _, turns = SHAPES["one"]
    assert counter.count(turns, [(640, 480)]).num_tokens > 64


def test_a_processor_that_tells_something_else_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = encoder("catty_llava")
    kind = type(chat.template_owner)
    right = kind._get_num_multimodal_tokens

    def wrong(self: Any, image_sizes: Any = None, **options: Any) -> Any:
        told = right(self, image_sizes, **options)
        told.num_image_tokens = [
            count + (16 if width > height else 0)
            for count, (height, width) in zip(told.num_image_tokens, image_sizes, strict=True)
        ]
        return told

    monkeypatch.setattr(kind, "_get_num_multimodal_tokens", wrong)
    counter = TokenCounter(chat)
    assert "the processor tells" in counter.refused
    _, turns = SHAPES["one"]
    row = chat.encode(turns, [noise(0, 90, 30)])
    assert counter.count(turns, [(90, 30)]).num_tokens == len(row.input_ids)
