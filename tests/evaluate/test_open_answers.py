"""Metrics of free answers: worked examples, and independent implementations on random inputs."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.evaluate.open_answers import METRICS, anls, judge, relaxed, vqa, vqa_normalise

TEN = ["red"] * 2 + ["blue"] * 5 + ["dark blue"] * 3
"""Ten annotators of VQA."""


@pytest.mark.parametrize(
    ("metric", "answer", "truths", "score"),
    [
        ("exact", "Red.", ["red"], 1),
        ("exact", "reddish", ["red"], 0),
        ("exact", "two", ["2", "two"], 1),
        # Two annotators agree: left out in turn, (8 x 2/3 + 2 x 1/3) / 10.
        ("vqa", "red", TEN, 0.6),
        ("vqa", "Blue", TEN, 1),
        # Three agree: (7 x 1 + 3 x 2/3) / 10.
        ("vqa", "a dark blue", TEN, 0.9),
        ("vqa", "green", TEN, 0),
        ("vqa", "2", ["two"], 1),
        ("anls", "Hello World", ["hello  world"], 1),
        # One of ten characters is wrong.
        ("anls", "abcdefghiX", ["abcdefghij"], 0.9),
        ("anls", "abcdeXXXXX", ["abcdefghij"], 0),
        ("anls", "abc", ["x", "abd"], 2 / 3),
        ("relaxed", "105", ["100"], 1),
        ("relaxed", "105.1", ["100"], 0),
        ("relaxed", "95", ["100"], 1),
        ("relaxed", "10%", ["0.1"], 1),
        ("relaxed", "1,040", ["1000"], 1),
        ("relaxed", "0", ["0"], 1),
        ("relaxed", "0.001", ["0"], 0),
        ("relaxed", "Japan", ["japan"], 1),
        ("relaxed", "-5", ["5"], 0),
        ("number", "The result is 3.14159", ["3.14"], 1),
        ("number", "about 3.2", ["3.14"], 0),
        ("number", "12 of them, so 7", ["7"], 1),
        ("number", "7.4", ["7"], 1),
        ("number", "1,250 dollars", ["1250"], 1),
        ("number", "no number", ["7"], 0),
        ("number", "[1, 2]", ["[1, 2]"], 1),
        ("contains", "The sign says STOP now", ["stop"], 1),
        ("contains", "The sign says GO", ["stop", "go"], 1),
        ("contains", "S T O P", ["stop"], 0),
        ("contains_formula", "x ^ 2 + 1", ["x^2+1"], 1),
        ("contains_formula", "X^2", ["x^2"], 0),
    ],
)
def test_worked_examples(metric: str, answer: str, truths: list[str], score: float) -> None:
    assert METRICS[metric](answer, truths) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Red\tDog.", "red dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("it's 5,000", "it's 5000"),
        ("3.5", "3.5"),
        ("yes, it is", "yes it is"),
        ("left-hand", "left hand"),
        ("left -hand", "left hand"),
        ("what?!", "what"),
    ],
)
def test_normalisation_of_vqa(text: str, expected: str) -> None:
    assert vqa_normalise(text) == expected


WORDS = st.sampled_from(["red", "Blue", "the blue", "2", "two", "a dog", "dog.", "no"])


@given(WORDS, st.lists(WORDS, min_size=2, max_size=12))
def test_vqa_is_the_mean_over_annotators(answer: str, truths: list[str]) -> None:
    said, given_ = vqa_normalise(answer), [vqa_normalise(truth) for truth in truths]
    needed = min(3, len(truths) - 1)
    total = 0.0
    for left_out in range(len(given_)):
        others = [one for k, one in enumerate(given_) if k != left_out]
        total += min(1.0, sum(one == said for one in others) / needed)
    assert vqa(answer, truths) == pytest.approx(total / len(truths))
    assert vqa(answer, list(reversed(truths))) == pytest.approx(vqa(answer, truths))


def distance(one: str, other: str) -> int:
    """Edit distance by the table of Wagner and Fischer."""
    table = {(-1, k): k + 1 for k in range(-1, len(other))}
    table |= {(k, -1): k + 1 for k in range(-1, len(one))}
    for i, j in product(range(len(one)), range(len(other))):
        table[i, j] = min(
            table[i - 1, j] + 1,
            table[i, j - 1] + 1,
            table[i - 1, j - 1] + (one[i] != other[j]),
        )
    return table[len(one) - 1, len(other) - 1]


@given(st.text("ab c", max_size=8), st.lists(st.text("ab c", max_size=8), min_size=1, max_size=3))
def test_anls_is_that_of_the_table(answer: str, truths: list[str]) -> None:
    def of(truth: str) -> float:
        one, other = (" ".join(text.split()) for text in (answer, truth))
        share = distance(one, other) / max(len(one), len(other), 1)
        return 1 - share if share < 0.5 else 0

    assert anls(answer, truths) == pytest.approx(max(map(of, truths)))
    assert anls(answer.upper(), truths[::-1]) == pytest.approx(anls(answer, truths))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6).filter(bool))
def test_relaxed_is_a_share_of_the_right_number(said: float, right: float) -> None:
    apart = abs(said - right) / abs(right)
    if not math.isclose(apart, 0.05, rel_tol=1e-9):
        assert relaxed(repr(said), [repr(right)]) == float(apart <= 0.05)


@given(st.sampled_from(sorted(METRICS)), st.text(), st.lists(st.text(), min_size=1))
def test_any_answer_is_judged(metric: str, answer: str, truths: list[str]) -> None:
    assert 0 <= METRICS[metric](answer, truths) <= 1


def test_thoughts_are_no_part_of_an_answer() -> None:
    assert judge("exact", "<think>blue?</think>red", ["red"]) == 1
    assert judge("contains", "<think>red", ["red"]) == 0
