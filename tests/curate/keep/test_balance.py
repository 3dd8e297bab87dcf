"""Evening out: the rule of POINTS, the same number of each class, and filling up by turns."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.base.hashing import hash_ids, mix_hash
from consomme.curate.keep.pseudo_classes import class_quotas
from consomme.curate.keep.registry import KEEP_POLICIES

COUNTS = {"person": 50, "text": 31, "building": 20, "food": 7, "animal": 0, "plant": 12}
SHORTLIST = {"name": "highest_fraction", "column": "tags.class_entropy"}


def column(counts: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    names = [name for name, number in counts.items() for _ in range(number)]
    return np.array(names, dtype=object), hash_ids(f"sample-{k}" for k in range(len(names)))


def kept_of(node: dict[str, Any], scores: dict[str, Any], hashes: Any) -> Counter[str]:
    kept = KEEP_POLICIES.build(node)(scores, hashes)
    return Counter(scores["tags.object"][kept.mask_N].tolist())


def test_what_is_above_the_mean_of_the_six_goes_to_three_fifths() -> None:
    # The mean of the six is 20: what has just as many stays, and so does what is rarer. A seventh
    # class counts as they do, but not for the mean; unknown and other ones are left alone.
    values, hashes = column({**COUNTS, "vehicle": 24, "": 99, "sky": 5, "other": 80})
    found = kept_of({"name": "balance"}, {"tags.object": values}, hashes)
    assert found == {
        "person": 30, "text": 18, "building": 20, "food": 7, "plant": 12, "vehicle": 14, "": 99,
        "sky": 5, "other": 80,
    }  # fmt: skip


def test_who_is_thinned_out_is_drawn_by_hashes_and_seed() -> None:
    values, hashes = column(COUNTS)
    scores = {"tags.object": values}
    for seed in (0, 7):
        kept = KEEP_POLICIES.build({"name": "balance", "seed": seed})(scores, hashes)
        persons = np.flatnonzero(values == "person")
        order = persons[np.argsort(mix_hash(hashes[persons], seed))]
        assert set(np.flatnonzero(kept.mask_N & (values == "person"))) == set(order[:30])


def test_the_manifest_says_what_was_thinned_out() -> None:
    values, hashes = column({**COUNTS, "": 4})
    stats = KEEP_POLICIES.build({"name": "balance"}).decide(
        lambda: [({"tags.object": values}, hashes)]
    ).describe()  # fmt: skip
    assert stats["mean_count"] == 20.0
    assert stats["thinned"] == {"person": 30, "text": 18}
    assert stats["counts"] == {name: n for name, n in sorted(COUNTS.items()) if n}
    assert (stats["num_scored"], stats["num_missing"]) == (120, 4)


def test_objects_that_nothing_shows_are_refused_with_what_there_is() -> None:
    values, hashes = column({"cat": 3, "dog": 2})
    with pytest.raises(DataError, match=r"no sample is of any of person, .*has 'cat', 'dog'"):
        KEEP_POLICIES.build({"name": "balance"})({"tags.object": values}, hashes)
    with pytest.raises(RecipeError, match="at least one class, each once"):
        KEEP_POLICIES.build({"name": "balance", "objects": ["cat", "cat"]})


def test_each_class_gives_the_same_number_the_lowest_or_by_lot() -> None:
    values, hashes = column({"cat": 9, "dog": 2, "": 5})
    ranks = np.array([8, 3, 1, 0, 7, 2, 5, 4, 6, 1, 0, 9, 9, 9, 9, 9], np.float32)
    scores = {"tags.object": values, "s": ranks}
    for extra, expected in (({}, {1, 2, 3, 5}), ({"highest": True}, {0, 4, 6, 8})):
        node = {"name": "class_balanced", "samples": 4, "column": "s", **extra}
        kept = KEEP_POLICIES.build(node)(scores, hashes)
        assert set(np.flatnonzero(kept.mask_N)) == expected | {9, 10}
    by_lot = [
        set(np.flatnonzero(KEEP_POLICIES.build(node)(scores, hashes).mask_N))
        for node in ({"name": "class_balanced", "samples": 4, "seed": seed} for seed in (0, 1))
    ]
    assert all(len(kept & set(range(9))) == 4 and kept >= {9, 10} for kept in by_lot)
    assert by_lot[0] != by_lot[1]
    with pytest.raises(RecipeError, match="but no column to rank by"):
        KEEP_POLICIES.build({"name": "class_balanced", "samples": 4, "highest": True})


def test_whole_numbers_are_classes_and_fractions_are_not() -> None:
    hashes = hash_ids("abcdef")
    node = {"name": "class_balanced", "samples": 1, "by": "label"}
    labels = np.array([1, 1, 2, 2, 2, np.nan], np.float32)
    kept = KEEP_POLICIES.build(node)({"label": labels}, hashes)
    assert labels[kept.mask_N].tolist() == [1, 2]
    with pytest.raises(DataError, match="'label' holds fractions, expected classes"):
        KEEP_POLICIES.build(node)({"label": labels + 0.5}, hashes)


def by_turns(counts: dict[str, int], budget: int, order: list[str]) -> dict[str, int]:
    """The algorithm as the paper says it, one sample at a time."""
    given_ = dict.fromkeys(counts, 0)
    for _ in range(budget):
        left = [name for name in order if given_[name] < counts[name]]
        if not left:
            break
        given_[min(left, key=lambda name: given_[name])] += 1
    return given_


@given(
    st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 9), min_size=1),
    st.integers(0, 40),
    st.integers(0, 3),
)
def test_filling_to_a_level_is_taking_turns(counts: dict[str, int], budget: int, seed: int) -> None:
    order = sorted(counts, key=lambda name: int(mix_hash(hash_ids([name]), seed)[0]))
    assert class_quotas(counts, budget, seed) == by_turns(counts, budget, order)


def test_a_shortlist_is_evened_out_over_pseudo_classes() -> None:
    rng = np.random.default_rng(0)
    entropy = rng.permutation(200).astype(np.float32)
    classes = np.array(["rare" if k % 20 == 0 else "common" for k in range(200)], dtype=object)
    classes[entropy == 199] = ""
    scores = {"tags.class_entropy": entropy, "tags.class": classes}
    hashes = hash_ids(map(str, range(200)))
    shortlist = {**SHORTLIST, "fraction": 0.5}
    node = {"name": "pseudo_class_balanced", "samples": 30, "shortlist": shortlist}
    kept = KEEP_POLICIES.build(node)(scores, hashes).mask_N
    assert kept.sum() == 30
    assert entropy[kept].min() >= 100
    shortlisted = (entropy >= 100) & (classes != "")
    rare = int((shortlisted & (classes == "rare")).sum())
    assert 0 < rare < 15
    assert (classes[kept] == "rare").sum() == rare
    common = np.flatnonzero(shortlisted & (classes == "common"))
    drawn = common[np.argsort(mix_hash(hashes[common], 0))][: 30 - rare]
    assert set(np.flatnonzero(kept & (classes == "common"))) == set(drawn)


def test_a_shortlist_without_classes_is_refused() -> None:
    scores = {
        "tags.class_entropy": np.ones(4, np.float32),
        "tags.class": np.array([""] * 4, dtype=object),
    }
    node = {"name": "pseudo_class_balanced", "samples": 2, "shortlist": SHORTLIST}
    with pytest.raises(DataError, match=r"has no sample with a tags\.class"):
        KEEP_POLICIES.build({**node, "shortlist": {**SHORTLIST, "fraction": 1.0}})(
            scores, hash_ids("abcd")
        )
