"""Prompts are drawn evenly and reproducibly, a typo is named, and slots take any text."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import RecipeError
from consomme.base.hashing import hash_ids
from consomme.base.recipe import check_recipe, fingerprint
from consomme.base.schema import to_plain
from consomme.curate.caption.prompt_pools import NAMED_POOLS
from consomme.curate.caption.prompts import (
    CAPTION_PROMPTS,
    PROMPT_POOLS,
    CaptionPrompt,
    OwnPrompt,
    caption_prompt,
    own_prompts,
    resolve_prompts,
    sample_prompts,
)
from consomme.datasets.boxes import BOX_PATTERN
from consomme.datasets.scene_tasks import TASKS
from consomme.pipelines.recaption.recipe import RecaptionRecipe

DIGEST = "ca939e4d4ee795fb"
"""Of all ids and texts. A new prompt changes it; a prompt that is there may never change."""


def ids(names):
    return [prompt.prompt_id for prompt in resolve_prompts(names)]


def test_draws_are_uniform_and_do_not_depend_on_the_batch():
    hashes = hash_ids(f"s{i}" for i in range(3000))
    names = ["long_v1", "long_v2", "long_v3"]

    drawn = sample_prompts(names, hashes, seed=1)
    counts = Counter(prompt.prompt_id for prompt in drawn)

    assert all(900 < counts[i] < 1100 for i in names)
    parts = [sample_prompts(names, part, seed=1) for part in np.array_split(hashes, 7)]
    assert [p for part in parts for p in part] == drawn
    assert sample_prompts(names, hashes, seed=2) != drawn
    assert sample_prompts(["vila2_long"], hashes, seed=1) == drawn


def test_an_unknown_prompt_is_named_with_the_closest_one():
    with pytest.raises(RecipeError, match="did you mean 'long_v1'"):
        caption_prompt("lnog_v1")
    with pytest.raises(RecipeError, match="at least one"):
        sample_prompts([], hash_ids(["a"]), 0)


def test_pools_stand_for_their_prompts_each_once():
    assert ids(["vila2_long"]) == ["long_v1", "long_v2", "long_v3"]
    assert ids(["long_v2", "plain", "vila2_long"]) == ["long_v2", "plain", "long_v1", "long_v3"]
    both = resolve_prompts(["describe_en", "describe_zh"])
    assert [p.text for p in both] == [*NAMED_POOLS["describe_en"], *NAMED_POOLS["describe_zh"]]
    assert len(both) == 20
    assert both[0].prompt_id == "describe_en_01"
    assert not set(PROMPT_POOLS) & set(CAPTION_PROMPTS)
    assert all(i in CAPTION_PROMPTS for pool in PROMPT_POOLS.values() for i in pool)


def test_all_typos_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        resolve_prompts(["plian", "vila_long", "plain"])
    assert "2 problems" in str(caught.value)
    assert "'plian'; did you mean 'plain'" in str(caught.value)
    assert "'vila_long'; did you mean 'vila2_long'" in str(caught.value)
    with pytest.raises(RecipeError, match="at least one"):
        resolve_prompts([])


def test_every_prompt_has_its_own_text_and_hash():
    hashes = {prompt.text_hash for prompt in CAPTION_PROMPTS.values()}
    assert len(hashes) == len(CAPTION_PROMPTS)
    assert all(len(h) == 12 for h in hashes)


def test_no_prompt_has_changed_under_its_id():
    texts = "".join(f"{p.prompt_id}\t{p.text_hash}\n" for p in CAPTION_PROMPTS.values())
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == DIGEST


def test_merging_asks_with_the_original_text_first_and_by_three_rules():
    fuse = caption_prompt("fuse")
    assert fuse.slots == ("original", "written")
    assert fuse.needs_written
    text = fuse.fill(original="Rex 2019", written="a brown dog")
    assert text.index("Rex 2019") < text.index("a brown dog")
    assert all(f"\n{number}. " in text for number in (1, 2, 3))
    assert fuse.text_hash == CaptionPrompt(prompt_id="x", text=fuse.text).text_hash
    with pytest.raises(RecipeError, match="'fuse' has a slot for the written text"):
        fuse.fill(original="Rex 2019")


@given(st.text(), st.text())
def test_slots_take_any_text_as_it_is(original, written):
    prompt = CaptionPrompt(prompt_id="x", text="<{original}|{written}>")
    assert prompt.fill(original=original, written=written) == f"<{original}|{written}>"


def test_braces_backslashes_and_slots_in_a_text_stay_what_they_are():
    fuse = caption_prompt("fuse")
    odd = "{written} {0} \\1 {original} }{ %s"
    text = fuse.fill(original=odd, written="ours")
    assert f"First text: {odd}\nSecond text: ours" in text


@pytest.mark.parametrize("prompt", [p for p in CAPTION_PROMPTS.values() if p.prompt_id != "fuse"])
def test_prompts_without_slots_need_nothing(prompt):
    assert prompt.fill() == prompt.fill(original="{a}", written="b") == prompt.text
    assert not prompt.needs_written


def test_specialists_are_asked_what_their_data_teaches():
    for task in ("spatial", "grounding", "ocr"):
        assert caption_prompt(task).text == TASKS[task].prompt
    assert "[xmin,ymin,xmax,ymax]" in caption_prompt("grounding").text
    assert caption_prompt("main_box").pattern == BOX_PATTERN


def test_own_words_get_an_id_made_from_them():
    own = OwnPrompt(text="What is odd here?")
    same = OwnPrompt(text="What is odd here?")
    assert own.prompt.prompt_id == same.prompt.prompt_id == "text_8559195b4d3f"
    assert own.prompt.text_hash == "8559195b4d3f"
    assert (
        OwnPrompt(text="What is odd here?", pattern="[a-z]+").prompt.prompt_id
        != "text_8559195b4d3f"
    )
    # A text that has an id keeps it.
    assert OwnPrompt(text="describe the image.").prompt == caption_prompt("plain")
    names = ["plain", own, "plain", same, "vila2_long"]
    found = ["plain", own.prompt.prompt_id, "long_v1", "long_v2", "long_v3"]
    assert ids(names) == found
    assert own_prompts(names) == {own.prompt.prompt_id: own.text}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text": " "}, "expected words"),
        ({"text": "Fix {caption}."}, r"placeholder {caption}; there are {original}, {written}"),
        ({"text": "Fix {orginal}."}, r"placeholder {orginal}; did you mean 'original'\?"),
        ({"text": "Fix { original }."}, r"placeholder { original }"),
        ({"text": "Fix {}."}, r"placeholder {}"),
        ({"text": "x", "pattern": "("}, "no regular expression"),
    ],
)
def test_bad_prompts_are_refused_with_what_was_found(values, said):
    with pytest.raises(RecipeError, match=said):
        OwnPrompt(**values)


def test_braces_that_are_no_placeholder_are_text():
    own = OwnPrompt(text='Answer as {"objects": [{"name": "…"}]}. Before: {original}')
    assert own.prompt.fill(original="a dog").endswith("Before: a dog")
    assert '{"objects"' in own.prompt.text


def test_recipes_hold_prompts_of_their_own():
    values = {"name": "x", "model": "m", "inputs": ["a.tar"]}
    own = [{"text": "Compare {original} and {written}."}]
    recipe = check_recipe(RecaptionRecipe, {**values, "prompts": ["plain", {"text": "Why?"}]})
    assert recipe.prompts == ("plain", OwnPrompt(text="Why?"))
    again = check_recipe(RecaptionRecipe, to_plain(recipe))
    assert fingerprint(again, {}) == fingerprint(recipe, {})
    for prompts, said in (
        (own, "prompts: text_[0-9a-f]{12} is about two captions"),
        ([{"txt": "Why?"}], r"prompts\[0\].*txt"),
        ([{"text": "{x}"}], r"prompts\[0\]: text: found the placeholder {x}"),
        (["Why not?"], "to ask in your own words, write {text: …}"),
    ):
        with pytest.raises(RecipeError, match=said):
            check_recipe(RecaptionRecipe, {**values, "prompts": prompts})


def test_recipes_without_such_prompts_keep_their_fingerprints():
    values = {"name": "x", "model": "m", "inputs": ["a.tar"]}
    assert fingerprint(check_recipe(RecaptionRecipe, values), {}) == "40307de4"
