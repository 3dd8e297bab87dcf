"""Prompts are drawn evenly and reproducibly, and a typo is named."""

from collections import Counter

import numpy as np
import pytest

from consomme.base.errors import RecipeError
from consomme.curate.keep import hash_ids
from consomme.curate.prompts import CAPTION_PROMPTS, caption_prompt, draw_prompts


def test_draws_are_uniform_and_do_not_depend_on_the_batch():
    hashes = hash_ids(f"s{i}" for i in range(3000))
    ids = ["long_v1", "long_v2", "long_v3"]

    drawn = draw_prompts(ids, hashes, seed=1)
    counts = Counter(prompt.prompt_id for prompt in drawn)

    assert all(900 < counts[i] < 1100 for i in ids)
    parts = [draw_prompts(ids, part, seed=1) for part in np.array_split(hashes, 7)]
    assert [p for part in parts for p in part] == drawn
    assert draw_prompts(ids, hashes, seed=2) != drawn


def test_an_unknown_prompt_is_named_with_the_closest_one():
    with pytest.raises(RecipeError, match="did you mean 'long_v1'"):
        caption_prompt("lnog_v1")
    with pytest.raises(RecipeError, match="at least one"):
        draw_prompts([], hash_ids(["a"]), 0)


def test_every_prompt_has_its_own_text_and_hash():
    hashes = {prompt.text_hash for prompt in CAPTION_PROMPTS.values()}
    assert len(hashes) == len(CAPTION_PROMPTS)
    assert all(len(h) == 12 for h in hashes)
