"""The identities of POINTS's soups, on scores small enough to check by hand."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.soup.searches import SEARCHES
from consomme.soup.selections import (
    BeamSoup,
    ExhaustiveSoup,
    GreedySoup,
    LeaveOneOut,
    MaximumSoup,
    RandomSoups,
    UniformSoup,
)

SINGLES = [0.60, 0.70, 0.65, 0.50]
PAIRS = {(1, 2): 0.70, (0, 1, 2): 0.72, (0, 1, 2, 3): 0.71, (0, 1): 0.71}


def score(members: tuple[int, ...]) -> float:
    return SINGLES[members[0]] if len(members) == 1 else PAIRS[members]


def test_greedy_goes_by_falling_score_and_accepts_equal():
    result = GreedySoup()(4, score)

    tried = [step.candidate for step in result.trace if len(step.members) > 1]
    assert tried == [2, 0, 3]
    assert [step.accepted for step in result.trace[4:]] == [True, True, False]
    assert [step.best_before for step in result.trace[4:]] == [0.70, 0.70, 0.72]
    assert (result.chosen, result.score) == ((0, 1, 2), 0.72)
    assert result.num_evaluations == 7
    assert result.best_single == (1, 0.70)


def test_greedy_can_ask_for_a_gain():
    result = GreedySoup(accept=">")(3, score)
    assert result.chosen == (0, 1)
    assert [s.accepted for s in result.trace if len(s.members) > 1] == [False, True]


@given(st.integers(1, 6), st.randoms(use_true_random=False), st.sampled_from([">=", ">"]))
def test_greedy_is_never_below_the_best_single_and_scores_nothing_twice(count, random, accept):
    asked = []

    def noisy(members):
        asked.append(members)
        return random.choice([0.1, 0.2, 0.3, 0.4])

    result = GreedySoup(accept=accept)(count, noisy)

    assert result.score >= max(result.single_scores.values())
    assert set(result.chosen) <= set(range(count))
    assert len(asked) == len(set(asked)) == result.num_evaluations == 2 * count - 1
    assert all(list(members) == sorted(members) for members in asked)


def test_maximum_of_one_is_the_best_and_of_all_is_uniform():
    assert MaximumSoup(k=1)(4, score).chosen == (1,)
    everything, uniform = MaximumSoup(k=4)(4, score), UniformSoup()(4, score)
    assert everything.chosen == uniform.chosen == (0, 1, 2, 3)
    assert everything.score == uniform.score == 0.71
    assert MaximumSoup(k=2)(4, score).chosen == (1, 2)
    assert uniform.num_evaluations == 1


def test_impossible_requests_say_what_is_wrong():
    with pytest.raises(RecipeError, match="only 4 ingredients"):
        MaximumSoup(k=5)(4, score)
    with pytest.raises(RecipeError, match="at least one ingredient"):
        UniformSoup()(0, score)
    with pytest.raises(DataError, match=r"\[0\] is NaN"):
        GreedySoup()(2, lambda members: math.nan)
    with pytest.raises(RecipeError, match="greedy"):
        SEARCHES.build({"name": "gready"})
    assert SEARCHES.build({"name": "greedy", "accept": ">"}) == GreedySoup(accept=">")


TABLE = {
    (0,): 0.5, (1,): 0.6, (2,): 0.4,
    (0, 1): 0.55, (0, 2): 0.8, (1, 2): 0.6,
    (0, 1, 2): 0.7,
}  # fmt: skip


def test_leave_one_out_takes_away_what_hurts_most() -> None:
    result = LeaveOneOut()(3, TABLE.__getitem__)
    # All: 0.7; without 1: 0.8, the best; then neither 0 nor 2 alone is better.
    assert (result.chosen, result.score) == ((0, 2), 0.8)
    assert [(s.members, s.candidate, s.accepted) for s in result.trace] == [
        ((0, 1, 2), None, True),
        ((0, 2), 1, True),
        ((1, 2), 0, False),
        ((0, 1), 2, False),
        ((0,), 2, False),
        ((2,), 0, False),
    ]
    flat = dict.fromkeys(TABLE, 0.5)
    assert LeaveOneOut()(3, flat.__getitem__).chosen == (0, 1, 2)
    assert LeaveOneOut(accept=">=")(3, flat.__getitem__).chosen == (2,)


def test_beam_finds_what_greedy_walks_past() -> None:
    assert GreedySoup()(3, TABLE.__getitem__).chosen == (1, 2)
    assert BeamSoup(width=1)(3, TABLE.__getitem__).chosen == (1,)
    result = BeamSoup(width=2)(3, TABLE.__getitem__)
    assert (result.chosen, result.score) == ((0, 2), 0.8)
    assert [s.members for s in result.trace if s.accepted] == [(1,), (0, 2)]


def test_exhaustive_is_the_best_of_all_and_of_equal_ones_the_smallest() -> None:
    result = ExhaustiveSoup()(3, TABLE.__getitem__)
    assert (result.chosen, result.num_evaluations) == ((0, 2), 7)
    assert ExhaustiveSoup()(3, lambda _: 0.5).chosen == (0,)
    with pytest.raises(RecipeError, match="found 13 ingredients, which have 8,191 selections"):
        ExhaustiveSoup()(13, lambda _: 0.5)


def test_random_scores_so_many_different_selections() -> None:
    result = RandomSoups(num=5, seed=3)(6, lambda members: float(sum(members)))
    scored = [step.members for step in result.trace]
    assert len(set(scored)) == len(scored) == result.num_evaluations == 5
    assert result.score == max(sum(members) for members in scored)
    again = RandomSoups(num=5, seed=3)(6, lambda members: float(sum(members)))
    assert again.trace == result.trace
    assert RandomSoups(num=50)(3, lambda _: 0.1).num_evaluations == 7


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_no_search_beats_all_selections_and_none_is_below_its_own_trace(count, random) -> None:
    scores: dict[tuple[int, ...], float] = {}

    def noisy(members: tuple[int, ...]) -> float:
        return scores.setdefault(members, random.choice([0.1, 0.2, 0.3]))

    best = ExhaustiveSoup()(count, noisy)
    for search in (LeaveOneOut(), BeamSoup(width=2), RandomSoups(num=9), GreedySoup()):
        result = search(count, noisy)
        assert result.score <= best.score
        assert result.score == scores[result.chosen]
        accepted = [step.score for step in result.trace if step.accepted]
        assert result.score >= max(accepted)


def test_what_will_be_asked_for_is_said_before() -> None:
    class Scores:
        def __init__(self) -> None:
            self.told: list[tuple[int, ...]] = []

        def ahead(self, selections: list[tuple[int, ...]]) -> None:
            self.told += selections

        def __call__(self, members: tuple[int, ...]) -> float:
            return TABLE[members]

    scores = Scores()
    ExhaustiveSoup()(3, scores)
    assert set(scores.told) == set(TABLE)


@pytest.mark.parametrize("search", [GreedySoup(accept=">="), LeaveOneOut(accept=">=")])
def test_what_lost_too_much_is_not_accepted_although_the_pool_did(search: Any) -> None:
    result = search(3, lambda members: -math.inf)
    accepted = [step for step in result.trace if step.accepted]
    # The first one has nothing to beat.
    assert len(accepted) == 1
    assert result.chosen == accepted[0].members
