"""Searches among shares: what they ask, in which order, and what they choose."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import RecipeError
from consomme.soup.blends import (
    WHOLE,
    Blend,
    Candidate,
    Grouping,
    blend,
    from_plain,
    members_of,
    plain,
    whole_shares,
)
from consomme.soup.search import SoupSearch
from consomme.soup.searches import SEARCHES
from consomme.soup.weights_search import CmaEsWeights, Nsga2Weights, TpeWeights, front_of

TARGET = (0.6, 0.3, 0.1, 0.0)
PARTS = Grouping(per_part=True)
WEIGHTS = ("tpe", "cma_es", "nsga2")


def shares(candidate: Candidate, count: int = 4) -> list[list[float]]:
    if isinstance(candidate, Blend):
        return candidate.shares()
    return [[(k in candidate) / len(candidate) for k in range(count)]]


class Peak:
    """The closer shares are to a target, the better; a second figure likes the last ingredient."""

    def __init__(self, num_groups: int = 1) -> None:
        self.asked: list[Candidate] = []
        self.batches: list[list[Candidate]] = []
        self.now, self.groups = 0.0, num_groups

    def __call__(self, candidate: Candidate) -> float:
        assert candidate not in self.asked, "nothing is scored twice"
        self.asked.append(candidate)
        return self.objectives(candidate)[0]

    def objectives(self, candidate: Candidate) -> tuple[float, float]:
        rows = shares(candidate)
        rows = rows * self.groups if len(rows) == 1 else rows
        off = [math.dist(row, TARGET[k:] + TARGET[:k]) for k, row in enumerate(rows)]
        return 1 - sum(off) / len(off), sum(row[3] for row in rows) / len(rows)

    def ahead(self, candidates: list[Candidate]) -> None:
        self.batches.append(candidates)

    def num_groups(self, grouping: Grouping) -> int:
        assert grouping == PARTS
        return self.groups

    def clock(self) -> float:
        self.now += 60.0
        return self.now


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.integers(2, 500))
def test_shares_are_whole_and_near(weights: list[float], resolution: int) -> None:
    units = whole_shares(weights, resolution)
    raised = [max(0.0, w) for w in weights]
    assert all(unit == 0 for unit, w in zip(units, raised, strict=True) if w == 0 and sum(raised))
    if len({u for u in units if u}) > 1:
        assert sum(units) == resolution
        exact = [Fraction(w) / sum(map(Fraction, raised)) for w in raised]
        assert all(abs(Fraction(u, resolution) - e) < Fraction(1, resolution)
                   for u, e in zip(units, exact, strict=True))  # fmt: skip
    assert sum(units) > 0


def test_equal_candidates_are_equal() -> None:
    assert whole_shares([0.333, 0.334, 0.333], 100) == (1, 1, 1)
    assert whole_shares([-1, -0.5, -2], 100) == (0, 1, 0)
    assert blend(WHOLE, [(50, 0, 50)]) == (0, 2)
    assert blend(WHOLE, [(60, 40)]) == blend(WHOLE, [(3, 2)])
    # Parts that have the same shares are no parts.
    assert blend(PARTS, [(2, 1), (4, 2)]) == Blend(grouping=WHOLE, units_GN=((2, 1),))
    assert blend(PARTS, [(1, 1), (5, 5)]) == (0, 1)
    parts = blend(PARTS, [(0, 1, 0), (1, 3, 0)])
    assert members_of(parts) == (0, 1)
    assert isinstance(parts, Blend)
    assert parts.shares() == [[0, 1, 0], [0.25, 0.75, 0]]
    for one in (parts, (1, 2), blend(WHOLE, [(3, 2)])):
        assert from_plain(plain(one)) == one


@pytest.mark.parametrize("name", WEIGHTS)
def test_known_points_come_first_and_the_best_that_was_seen_is_chosen(name: str) -> None:
    scores = Peak()
    search: SoupSearch = SEARCHES.build({"name": name, "max_evaluations": 40})
    result = search(4, scores)
    # What has one objective only, and what has several, ask for the first ingredient before.
    assert scores.asked[:5] == [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]
    assert len(scores.asked) == result.num_evaluations == len(result.trace) == 40
    best = max(step.score for step in result.trace)
    assert result.score == best
    assert [step.scored for step in result.trace if step.accepted][-1] == result.soup
    assert result.score > scores.objectives((0, 1, 2, 3))[0]
    again = Peak()
    assert search(4, again) == result
    assert again.asked == scores.asked, "the same seed and the same answers: the same candidates"
    assert again.batches == scores.batches
    other: SoupSearch = SEARCHES.build({"name": name, "max_evaluations": 40, "seed": 1})
    assert other(4, Peak()).trace[5:] != result.trace[5:]


@pytest.mark.parametrize(
    "search", [TpeWeights(max_evaluations=120), CmaEsWeights(max_evaluations=120)]
)
def test_it_comes_near_the_optimum_that_no_selection_has(search: Any) -> None:
    result = search(4, Peak())
    assert isinstance(result.blend, Blend)
    # The best selection is off by 0.245: a half of each of the first two.
    assert 1 - result.score < 0.08
    assert abs(result.blend.shares()[0][0] - 0.6) < 0.08


@pytest.mark.parametrize("name", WEIGHTS)
def test_parts_have_shares_of_their_own(name: str) -> None:
    scores = Peak(num_groups=2)
    search: Any = SEARCHES.build({"name": name, "per_part": True, "max_evaluations": 80})
    result = search(4, scores)
    whole: Any = SEARCHES.build({"name": name, "max_evaluations": 80})
    assert result.score > whole(4, Peak(num_groups=2)).score
    assert result.blend.grouping == PARTS
    assert len(result.blend.units_GN) == 2


def test_time_ends_a_search_between_batches() -> None:
    # The clock is read once at the start and before each batch: a minute each.
    result = TpeWeights(max_hours=3 / 60, batch=4)(4, Peak())
    assert result.num_evaluations == 5 + 2 * 4
    assert CmaEsWeights(max_hours=1e-9)(4, Peak()).num_evaluations == 5


def test_a_search_that_knows_all_candidates_ends() -> None:
    result = TpeWeights(resolution=2, max_evaluations=500)(2, lambda c: float(len(c)))
    # Two alone, and the half of both.
    assert (result.chosen, result.num_evaluations) == ((0, 1), 3)


def test_front_by_hand() -> None:
    table = {
        (0,): (0.9, 0.1), (1,): (0.5, 0.5), (2,): (0.4, 0.5), (0, 1): (0.9, 0.1),
        (0, 2): (0.1, 0.9), (1, 2): (0.5, 0.4),
    }  # fmt: skip
    assert front_of(list(table), table.__getitem__) == [(0,), (1,), (0, 2)]


def test_several_objectives_give_a_front_and_one_soup() -> None:
    scores = Peak()
    result = Nsga2Weights(max_evaluations=80)(4, scores)
    values = [scores.objectives(one) for one in result.front]
    assert values == sorted(values, reverse=True)
    assert [second for _, second in values] == sorted(second for _, second in values)
    # The last ingredient alone excels in the second figure, the soup in the first one.
    assert result.front[-1] == (3,)
    assert result.front[0] == result.soup
    assert len(result.front) > 4


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "tpe", "max_evaluations": 4}, "max_evaluations: found 4, expected at least 5"),
        ({"name": "nsga2"}, "found one objective"),
        ({"name": "cma_es", "layer_groups": 2}, "layer_groups: found 2 without per_part"),
    ],
)
def test_what_cannot_be_searched_is_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SEARCHES.build(node)(4, lambda _: 0.5)
