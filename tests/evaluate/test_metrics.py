"""Figures and intervals against published values and brute force."""

import math
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.evaluate.metrics import (
    accuracy,
    aggregate_claims,
    exact_match,
    paired_accuracy,
    paired_mean,
)


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("Red.", "red", True),
        ("  a  red\ncircle ", "A red circle", True),
        ("«Yes!»", "yes", True),
        ("ＲＥＤ", "red", True),
        ("straße", "STRASSE", True),
        ("3.5", "35", False),
        ("red circle", "red", False),
        ("", "red", False),
        ("two", ["2", "two"], True),
        ("2", ["two", "three"], False),
    ],
)
def test_exact_match_forgives_form_and_nothing_else(prediction, answer, same):
    assert exact_match(prediction, answer) is same


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_accuracy_interval_is_wilsons(right, total, low, high):
    found = accuracy([True] * right + [False] * (total - right))
    assert (found.num_correct, found.num_total) == (right, total)
    assert found.value == right / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_no_question_no_accuracy():
    with pytest.raises(DataError, match="at least one"):
        accuracy([])


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 30))
def test_mcnemar_is_the_exact_binomial_tail(gained, lost, agree):
    first = [False] * gained + [True] * lost + [True] * agree
    second = [True] * gained + [False] * lost + [True] * agree
    found = paired_accuracy(first, second)

    total, fewer = gained + lost, min(gained, lost)
    tail = sum(comb(total, k) for k in range(fewer + 1)) / 2**total
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert found.difference == pytest.approx((gained - lost) / len(first))
    assert found.low <= found.difference + 0.1
    swapped = paired_accuracy(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_pairing_finds_what_separate_intervals_hide():
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.8
    second = first | (rng.random(500) < 0.15)
    assert accuracy(first).high > accuracy(second).low
    found = paired_accuracy(first.tolist(), second.tolist())
    assert found.is_certain
    assert found.p_value < 1e-3
    assert not paired_accuracy(first.tolist(), first.tolist()).is_certain


def test_thousands_of_disagreements_do_not_overflow():
    found = paired_accuracy([True] * 3000 + [False] * 3200, [False] * 3000 + [True] * 3200)
    assert 0.005 < found.p_value < 0.02


def test_bootstrap_interval_covers_the_normal_one():
    rng = np.random.default_rng(1)
    first = rng.normal(size=400)
    second = first + rng.normal(0.2, 1.0, size=400)
    found = paired_mean(first, second, seed=3)
    change = second - first
    half = 1.96 * change.std() / math.sqrt(400)
    assert found.difference == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - half, abs=0.02)
    assert found.high == pytest.approx(change.mean() + half, abs=0.02)
    assert paired_mean(first, second, seed=3) == found


def test_comparisons_need_the_same_samples():
    with pytest.raises(DataError, match="2 results against 1"):
        paired_accuracy([True, False], [True])


def test_claims_add_up_before_dividing():
    found = aggregate_claims([4, 0, 1], [0, 1, 0], [0, 4, 1])
    assert found.precision == pytest.approx(5 / 6)
    assert found.recall == pytest.approx(5 / 10)
    assert found.true_per_caption == pytest.approx(5 / 3)
    assert found.false_per_caption == pytest.approx(1 / 3)
    assert found.missing_per_caption == pytest.approx(5 / 3)
    assert found.faithful_fraction == pytest.approx(2 / 3)
    assert math.isnan(aggregate_claims([0], [0], [3]).precision)
    with pytest.raises(DataError, match="one of each per caption"):
        aggregate_claims([1], [1, 2], [0])
