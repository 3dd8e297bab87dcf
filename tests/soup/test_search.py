"""The identities of POINTS's soups, on scores small enough to check by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.soup.search import SEARCHES, GreedySoup, MaximumSoup, UniformSoup

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
