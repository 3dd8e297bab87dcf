"""Training splits the pictures of some samples: the same ones wherever they are read."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.families import FAMILIES, noise
from tests.support.tiled import TILED

from consomme.base.errors import CheckpointError
from consomme.base.sample import ImageFile, Sample, Turn
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import PreparedSample, Preparer, encode

SOURCE = TrainSource(inputs=("nowhere",))


def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for number in range(24):
        path = tmp_path / f"{number}.png"
        noise(number, 60 + number, 40).save(path)
        made.append(
            Sample(
                sample_id=f"s{number}",
                images=(ImageFile(data=path.read_bytes(), name=path.name),),
                turns=(
                    Turn(role="user", content="star?"),
                    Turn(role="assistant", content="it is green"),
                ),
                source="test",
            )
        )
    return made


def recipe(**changes: Any) -> TrainRecipe:
    return TrainRecipe(name="split", model="nowhere", data=(SOURCE,), **changes)


def prepared(preparer: Preparer, some: list[Sample]) -> list[PreparedSample]:
    found = [preparer.prepare(one, SOURCE, random.Random(0)) for one in some]
    assert all(isinstance(one, PreparedSample) for one in found), found
    return [one for one in found if isinstance(one, PreparedSample)]


@pytest.mark.parametrize("name", ["split_llava", "idefics2", "smolvlm"])
def test_half_of_the_samples_are_split_by_id_and_seed(tmp_path: Path, name: str) -> None:
    model, processor = (FAMILIES | TILED)[name]()
    chat = chat_encoder_for(model.config, processor)
    some = samples(tmp_path)
    found = prepared(Preparer(recipe(split_fraction=0.5), chat, 4096), some)
    assert 4 < sum(one.is_split is True for one in found) < 20
    again = prepared(Preparer(recipe(split_fraction=0.5), chat, 4096), some[::-1])
    assert [one.is_split for one in again[::-1]] == [one.is_split for one in found]
    other = prepared(Preparer(recipe(split_fraction=0.5, seed=5), chat, 4096), some)
    assert [one.is_split for one in other] != [one.is_split for one in found]
    lengths: dict[bool | None, set[int]] = {True: set(), False: set()}
    for one in found:
        # It is encoded to as many tokens as were counted, or encode raises.
        lengths[one.is_split].add(len(encode(chat, one).input_ids))
    assert min(lengths[True]) > max(lengths[False])
    # The model is given the pictures that the text has tokens for; it raises if not.
    batcher = Batcher(model, chat.tokenizer)
    batch = batcher.collate([encode(chat, one) for one in found[:6]])
    assert {one.is_split for one in found[:6]} == {True, False}
    with torch.no_grad():
        assert model.eval()(**batch).logits.isfinite().all()
    evaluated = Preparer(recipe(split_fraction=0.5), chat, 4096, splits_some=False)
    assert {one.is_split for one in prepared(evaluated, some)} == {None}


def test_a_tiling_names_its_own_share(tmp_path: Path) -> None:
    model, processor = TILED["split_llava"]()
    processor.image_processor.tiling = {**processor.image_processor.tiling, "probability": 0.5}
    chat = chat_encoder_for(model.config, processor)
    some = samples(tmp_path)
    split = [one.is_split for one in prepared(Preparer(recipe(), chat, 4096), some)]
    assert {True, False} == set(split)
    named = prepared(Preparer(recipe(split_fraction=0.5), chat, 4096), some)
    assert [one.is_split for one in named] == split


def test_a_processor_that_cannot_be_told_is_refused() -> None:
    model, processor = TILED["catty_llava"]()
    chat = chat_encoder_for(model.config, processor)
    with pytest.raises(CheckpointError, match=r"split_fraction: found 0.5, .* cannot be told"):
        Preparer(recipe(split_fraction=0.5), chat, 4096)
    assert Preparer(recipe(), chat, 4096).recipe.split_fraction is None


def test_a_count_that_is_not_that_of_the_tokens_stops_the_run(tmp_path: Path) -> None:
    model, processor = TILED["catty_llava"]()
    chat = chat_encoder_for(model.config, processor)
    (one, *_) = prepared(Preparer(recipe(), chat, 4096), samples(tmp_path))
    assert len(encode(chat, one).input_ids) == one.num_tokens
    with pytest.raises(Exception, match=r"s0: found \d+ tokens, expected 7, as counted .* 60 x 40"):
        encode(chat, replace(one, num_tokens=7))
