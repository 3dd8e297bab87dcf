"""Paired comparisons of two models on the same questions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.evaluate.comparison import compare, mcnemar


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail(better: int, worse: int) -> None:
    total = better + worse
    tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(min(better, worse) + 1))
    assert mcnemar(better, worse) == pytest.approx(float(min(1, 2 * tail)))
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_thousands_of_questions() -> None:
    assert mcnemar(2600, 2400) == pytest.approx(0.00490, abs=2e-4)
    assert mcnemar(2500, 2500) == 1.0


def test_a_difference_with_its_interval() -> None:
    first, second = [1.0] * 50 + [0.0] * 50, [1.0] * 70 + [0.0] * 30
    found = compare(first, second)
    assert found.difference == pytest.approx(0.2)
    assert found.p_value == pytest.approx(2 / 2**20)
    assert 0.1 < found.low < 0.2 < found.high < 0.3
    assert found.resolvable == pytest.approx(2.8016 * math.sqrt(0.2 / 100), rel=1e-3)
    assert compare(second, first).difference == pytest.approx(-0.2)
    assert compare(first, second) == found


def test_equal_models() -> None:
    found = compare([1, 0, 0.5], [1, 0, 0.5])
    assert (found.difference, found.p_value) == (0, 1.0)
    assert found.resolvable == pytest.approx(2.8016 / 3, rel=1e-3)


def test_scores_that_are_shares_are_permuted() -> None:
    first = [0.5] * 12
    found = compare(first, [0.7] * 12)
    # All signs have to agree: 2 of 2 ** 12 permutations.
    assert found.p_value < 0.005
    assert compare(first, [0.7, 0.3] * 6).p_value > 0.9


def test_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="found 1 and 2 verdicts"):
        compare([1], [1, 0])
    with pytest.raises(DataError, match="found 0 and 0 verdicts"):
        compare([], [])
