"""When samples go with their pictures: each rule alone, and against a slow reading of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.curate.dedup.copies import Duplicates
from consomme.curate.dedup.samples import drop_samples

RULES = ("all_copies", "any_copy", "first_copy")


def decided(
    groups: list[list[str]], rule: str, near: str = ""
) -> tuple[list[bool], list[bool], int]:
    """Decide about samples, best first, each given by the groups of its pictures."""
    flat = [name for sample in groups for name in sample]
    center = np.array([flat.index(name) for name in flat], dtype=np.int64)
    is_copy = center != np.arange(len(flat))
    duplicates = Duplicates(
        representative_N=center,
        distance_N=np.zeros(len(flat), np.uint8),
        is_exact_N=is_copy & np.array([name not in near for name in flat], dtype=bool),
        difference_N=np.zeros(len(flat), np.float32),
    )
    begin = np.cumsum([0, *map(len, groups)])[:-1].astype(np.int64)
    found = drop_samples(begin, duplicates, rule)  # type: ignore[arg-type]
    return found.is_dropped_S.tolist(), found.is_exact_S.tolist(), found.num_inside


def by_the_rule(groups: list[list[str]], rule: str) -> list[bool]:
    """Go through the samples and remember what those that stay hold."""
    held: set[str] = set()
    dropped = []
    for sample in groups:
        taken = [name in held for name in sample]
        goes = {"all_copies": all(taken), "any_copy": any(taken), "first_copy": taken[0]}[rule]
        dropped.append(goes)
        held |= set() if goes else set(sample)
    return dropped


@pytest.mark.parametrize("rule", RULES)
def test_with_one_picture_each_what_stands_for_a_group_stays(rule):
    groups = [["a"], ["b"], ["a"], ["c"], ["b"]]
    assert decided(groups, rule) == ([False, False, True, False, True],) * 2 + (0,)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("all_copies", [False, False, True, False]),
        ("any_copy", [False, True, True, True]),
        ("first_copy", [False, False, True, True]),
    ],
)
def test_a_sample_goes_by_the_rule(rule, expected):
    groups = [["a", "b"], ["c", "a"], ["b", "a"], ["b", "d"]]
    assert decided(groups, rule)[0] == expected


def test_what_a_sample_holds_twice_is_no_reason():
    assert decided([["a", "a"], ["b", "a", "b"]], "all_copies") == ([False, False], [False] * 2, 2)
    assert decided([["a", "a"], ["b", "b"]], "any_copy")[0] == [False, False]


def test_the_next_best_stands_in_for_a_picture_whose_sample_goes():
    # "b" stands in the second sample, which goes for "a"; so the third holds "b", not the fourth.
    groups = [["a"], ["a", "b"], ["b", "c"], ["b"]]
    assert decided(groups, "any_copy")[0] == [False, True, False, True]


def test_copies_that_only_look_alike_are_not_exact():
    groups = [["a", "b"], ["a"], ["a", "b"], ["b"]]
    assert decided(groups, "all_copies", near="b") == (
        [False, True, True, True],
        [False, True, False, False],
        0,
    )
    assert decided(groups, "first_copy", near="b")[1] == [False, True, True, False]


def test_nothing_is_decided_about_nothing():
    for rule in RULES:
        assert decided([], rule) == ([], [], 0)


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), max_size=12),
    st.sampled_from(RULES),
)
def test_every_rule_is_what_it_says(groups, rule):
    dropped, _, _ = decided(groups, rule)
    assert dropped == by_the_rule(groups, rule)
    if rule == "all_copies":
        kept = {
            name
            for sample, goes in zip(groups, dropped, strict=True)
            if not goes
            for name in sample
        }
        assert kept == {name for sample in groups for name in sample}, "a picture is lost"
