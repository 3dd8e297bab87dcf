"""Mixes of every two ingredients: which is chosen, and the barriers, against values by hand."""

import math
from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.soup.blends import Blend, members_of
from consomme.soup.searches import SEARCHES

# Singles; then each pair at a quarter, half and three quarters of the second one.
SINGLES = [0.5, 0.7, 0.6]
MIXES = {
    (0, 1): [0.55, 0.4, 0.65],
    (0, 2): [0.6, 0.8, 0.6],
    (1, 2): [0.675, 0.65, 0.625],
}


def score(candidate: Any) -> float:
    members = members_of(candidate)
    if len(members) == 1:
        return SINGLES[members[0]]
    if not isinstance(candidate, Blend):
        return MIXES[members][1]
    (units,) = candidate.units_GN
    return MIXES[members][0 if units[members[0]] == 3 else 2]


def test_barriers_are_those_by_hand() -> None:
    search: Any = SEARCHES.build({"name": "pairs", "points": 3})
    found = {(one.first, one.second): one for one in search.barriers(3, score)}
    # On the line from 0.5 to 0.7 lie 0.55, 0.6 and 0.65; the middle falls 0.2 below it.
    assert found[0, 1].barrier == pytest.approx(0.2)
    # From 0.5 to 0.6: 0.525, 0.55, 0.575; every mix is better, at the end by 0.025.
    assert found[0, 2].barrier == pytest.approx(-0.025)
    assert (found[0, 2].best, found[0, 2].best_share) == (0.8, 0.5)
    # All on the line.
    assert found[1, 2].barrier == pytest.approx(0.0)


def test_the_best_of_singles_and_mixes_is_chosen() -> None:
    result = SEARCHES.build({"name": "pairs", "points": 3})(3, score)
    assert (result.soup, result.score) == ((0, 2), 0.8)
    assert result.num_evaluations == 3 + 3 * 3
    assert [step.accepted for step in result.trace].count(True) == 2
    # One point is the middle, which is a selection that other searches score too.
    middle = SEARCHES.build({"name": "pairs"})(3, score)
    assert middle.soup == (0, 2)
    assert middle.num_evaluations == 6
    assert SEARCHES.build({"name": "pairs"})(1, score).soup == (0,)


def test_mixes_that_lost_too_much_are_not_chosen_and_still_have_a_barrier() -> None:
    def guarded(candidate: Any) -> float:
        return -math.inf if members_of(candidate) == (0, 2) else score(candidate)

    search: Any = SEARCHES.build({"name": "pairs"})
    assert search(3, guarded).soup == (1,)


def test_too_many_are_refused() -> None:
    with pytest.raises(RecipeError, match="found 60 ingredients and points 1, which take 1,830"):
        SEARCHES.build({"name": "pairs"})(60, score)
