"""A candidate is stopped if it is worse, most likely, and one that is as good is stopped rarely."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluate.test_file_kinds import write_tsv

from consomme.base.errors import RecipeError
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.comparison import mcnemar
from consomme.evaluate.early_stop import AskedQuestions, EarlyStop, p_as_good


def test_the_test_by_hand() -> None:
    assert p_as_good([]) == p_as_good([0.0, 0.0]) == 1.0
    assert p_as_good([-1] * 5) == pytest.approx(1 / 32)
    # Of five differences one is a gain: (1 + 5) of 32.
    assert p_as_good([-1, -1, 0, 1, -1, -1, 0]) == pytest.approx(6 / 32)
    assert p_as_good([1, 1, 1]) == 1.0
    assert p_as_good([-1] * 20 + [1] * 7) == pytest.approx(mcnemar(7, 20) / 2)
    # 2,000 questions are no problem for floats.
    assert 0 < p_as_good([-1] * 1100 + [1] * 900) < 1e-5


def test_graded_scores_are_compared_by_random_signs() -> None:
    sizes = [0.1, 0.2, 0.4, 0.8, 1.6]
    # No other choice of signs has so small a sum: 1 of 32; with the smallest one turned, 2.
    assert p_as_good([-size for size in sizes]) == pytest.approx(1 / 32, abs=0.005)
    assert p_as_good([0.1, *(-size for size in sizes[1:])]) == pytest.approx(2 / 32, abs=0.007)


def test_looks_double_and_the_order_is_the_same_for_all() -> None:
    stop = EarlyStop(first_questions=10)
    assert stop.looks(100) == [10, 20, 40, 80]
    assert stop.looks(80) == [10, 20, 40]
    assert stop.looks(10) == []
    assert sorted(stop.order(50)) == list(range(50))
    assert stop.order(50) == EarlyStop(first_questions=8).order(50) != list(range(50))
    assert stop.order(50) != EarlyStop(seed=1).order(50)


@pytest.mark.parametrize("is_graded", [False, True])
def test_what_is_as_good_is_stopped_as_rarely_as_stated(is_graded: bool) -> None:
    """Level 0.1 on 250 questions of which a third differ: of 600 candidates at most 60 or so."""
    stop = EarlyStop(level=0.1, first_questions=16)
    looks = stop.looks(250)
    rng = np.random.default_rng(5)
    num_runs = 60 if is_graded else 600
    num_stopped = num_late = 0
    for _ in range(num_runs):
        differs = rng.random(250) < 1 / 3
        sizes = rng.random(250) if is_graded else np.ones(250)
        gains = differs * sizes * rng.choice([-1.0, 1.0], 250)
        worse = differs * sizes * rng.choice([-1.0, 1.0], 250, p=[0.85, 0.15])
        num_stopped += any(stop.is_hopeless(gains[:look], len(looks)) for look in looks)
        num_late += not any(stop.is_hopeless(worse[:look], len(looks)) for look in looks)
    spread = 3 * (0.1 * 0.9 / num_runs) ** 0.5
    assert num_stopped / num_runs <= 0.1 + spread
    assert num_late / num_runs < 0.1, "what is much worse is stopped"


def choice(folder: Path, num: int, **options: Any) -> dict[str, Any]:
    rows = [
        {"question": f"which {k}?", "A": "red", "B": "blue", "C": "green", "answer": "B"}
        for k in range(num)
    ]
    return {"name": "multiple_choice", "file": write_tsv(folder / f"c{num}.tsv", rows), **options}


def test_a_question_is_asked_in_all_of_its_rotations(tmp_path: Path) -> None:
    benchmark = BENCHMARKS.build(choice(tmp_path, 4, circular=True))
    questions = AskedQuestions.of(benchmark)
    assert questions.requests == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
    assert questions.weights == (1.0, 1.0, 1.0, 1.0)


def test_questions_of_several_benchmarks_count_by_their_weight(tmp_path: Path) -> None:
    parts = [
        {"benchmark": choice(tmp_path, 2), "weight": 3},
        {"benchmark": choice(tmp_path, 4), "weight": 1},
    ]
    benchmark = BENCHMARKS.build({"name": "weighted", "parts": parts})
    questions = AskedQuestions.of(benchmark)
    # 3/4 on two questions, 1/4 on four; the mean is 1.
    assert questions.weights == pytest.approx((2.25, 2.25, 0.375, 0.375, 0.375, 0.375))
    answers = ["B", "A", "B", "B", "B", "C"]
    figure = next(iter(benchmark.measure(answers).values()))
    assert figure == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)
    questions.check(benchmark, answers, figure)
    with pytest.raises(RecipeError, match=r"main figure of Weighted is 0\.500000, but its"):
        questions.check(benchmark, answers, 0.5)
