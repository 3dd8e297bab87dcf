"""Exact match, and intervals of accuracies against published values."""

import pytest

from consomme.base.errors import DataError
from consomme.evaluate.metrics import accuracy, exact_match


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
