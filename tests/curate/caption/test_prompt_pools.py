"""Prompts by type of text: the same sample is always asked the same."""

from collections import Counter

import pytest

from consomme.base.errors import RecipeError
from consomme.curate.caption.prompt_pools import NAMED_POOLS, PromptPools


def test_types_have_their_own_prompts_and_the_rest_has_the_default() -> None:
    pools = PromptPools.read({"ocr": ["Transcribe the text."]}, "kind", "describe the image.")
    assert pools.draw("a", {"kind": "ocr"}) == "Transcribe the text."
    assert pools.draw("a", {"kind": "caption"}) == "describe the image."
    assert pools.draw("a", {}) == "describe the image."


def test_of_several_the_id_draws_one_each_about_equally_often() -> None:
    pools = PromptPools.read({"default": ["pool:describe_en", "Go on."]}, "kind", "unused")
    drawn = Counter(pools.draw(f"sample-{k}", {}) for k in range(2200))
    assert set(drawn) == {*NAMED_POOLS["describe_en"], "Go on."}
    assert all(140 < count < 260 for count in drawn.values()), drawn
    assert pools.draw("sample-7", {}) == pools.draw("sample-7", {"other": 1})


def test_mistakes_say_what_there_is() -> None:
    with pytest.raises(RecipeError, match="describe_en"):
        PromptPools.read({"ocr": ["pool:describe_em"]}, "kind", "x")
    with pytest.raises(RecipeError, match="at least one"):
        PromptPools.read({"ocr": []}, "kind", "x")


def test_the_pools_are_as_large_as_in_the_paper() -> None:
    assert len(set(NAMED_POOLS["describe_en"])) == len(set(NAMED_POOLS["describe_zh"])) == 10
