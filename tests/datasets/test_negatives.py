"""Hard negatives by rule: what each changes, and that the same sample always gets the same."""

import pytest

from consomme.datasets.negatives import ARO_SHUFFLES, NEGATIVES, Words, negative, negatives
from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scene_pairs import (
    is_false,
    is_still_true,
    negative_pairs,
    place_sets,
)
from consomme.datasets.scenes import caption, make_scene

CAPTION = "A small brown dog next to a red car, on the left of an old house."


def words_of(text: str) -> list[str]:
    return sorted(text.lower().replace(",", " ,").replace(".", " .").split())


@pytest.mark.parametrize("kind", [*ARO_SHUFFLES, "swap_obj", "swap_att"])
def test_shuffles_and_swaps_keep_all_words(kind: str) -> None:
    text = negative(kind, CAPTION, "7")
    assert text is not None
    assert words_of(text) == words_of(CAPTION)
    assert text != CAPTION


def test_shuffles_move_what_they_say() -> None:
    tokens = CAPTION.replace(",", " ,").replace(".", " .").split()
    content = {"small", "brown", "dog", "red", "car", "old", "house", "left"}
    where = [k for k, token in enumerate(tokens) if token in content]
    for sample in "0123456789":
        text = negative("shuffle_allbut_nouns_and_adj", CAPTION, sample)
        got = text.replace(",", " ,").replace(".", " .").split()
        assert [got[k] for k in where] == [tokens[k] for k in where]
        text = negative("shuffle_within_trigrams", CAPTION, sample)
        got = text.replace(",", " ,").replace(".", " .").split()
        for start in range(0, len(tokens), 3):
            assert sorted(got[start : start + 3]) == sorted(tokens[start : start + 3])


def test_rules_of_sugarcrepe() -> None:
    found = {kind: negative(kind, "a red dog left of a blue car", "1") for kind in NEGATIVES}
    assert found["swap_obj"] == "a red car left of a blue dog"
    assert found["swap_att"] == "a blue dog left of a red car"
    assert found["replace_rel"] == "a red dog right of a blue car"
    assert len(set(found["replace_obj"].split()) & {"dog", "car"}) == 1
    assert len(set(found["replace_att"].split()) & {"red", "blue"}) == 1
    assert found["add_obj"].startswith("a red dog left of a blue car and a")
    assert len(found["add_att"].split()) == 9


def test_what_cannot_be_changed_is_none() -> None:
    assert negative("swap_obj", "a dog", "1") is None
    assert negative("swap_att", "a red dog and a red cat", "1") is None
    # A red small dog is a small red dog.
    assert negative("swap_att", "a small red dog", "1") is None
    assert negative("swap_obj", "a dog at the top left", "1") is None
    assert negative("replace_rel", "a dog", "1") is None
    assert negative("shuffle_trigrams", "a dog", "1") is None
    for kind in NEGATIVES:
        assert negative(kind, "", "1") is None or kind == "add_obj"
        assert negative(kind, "…!?", "1") != "…!?"
    with pytest.raises(KeyError):
        negative("swap", "a dog", "1")


def test_a_sample_always_gets_the_same_and_others_get_others() -> None:
    for kind in NEGATIVES:
        assert negative(kind, CAPTION, "1") == negative(kind, CAPTION, "1")
    assert len({negative("shuffle_trigrams", CAPTION, str(k)) for k in range(20)}) > 5
    found = negatives(CAPTION, "1", tuple(NEGATIVES))
    assert len(set(found.values())) == len(found) >= 9


def test_words_come_from_the_captions() -> None:
    words = Words.of(["a green tree", "two red birds sitting on a fence"])
    assert words.nouns == ("birds", "fence", "tree")
    assert words.adjectives == ("green", "red")
    assert "dog" not in negative("replace_obj", "a cat", "1", words)


def test_negatives_of_scenes_are_false_for_certain() -> None:
    kinds = ("swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel")
    made = list(negative_pairs(kinds, 10, 50, "filled"))
    assert [one.kind for one in made[:5]] == list(kinds)
    for one in made:
        true, false = one.captions
        assert not check_caption(one.scene, true).false
        assert is_false(one.scene, false)
        assert not is_still_true(one.scene, false, true)
    scene = make_scene(3)
    assert is_still_true(scene, caption(scene), caption(scene))


def test_sets_of_places_have_one_true_caption_each() -> None:
    for one in place_sets(0, 10, "filled"):
        assert not check_caption(one.scene, one.captions[0]).false
        assert all(is_false(one.scene, text) for text in one.captions[1:])
        assert len(set(one.captions)) == 4
