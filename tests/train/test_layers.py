"""Layer selectors select the right layers at any depth."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import RecipeError
from consomme.train.layers import LAYER_SELECTORS, Rotating, SparseUniform


@pytest.mark.parametrize(
    ("num_layers", "fraction", "expected"),
    [
        # 32 layers, 8 of them: the paper's ids for LLaVA-1.5-7B, counted from 0.
        (32, 0.25, (0, 4, 8, 12, 16, 20, 24, 28)),
        (40, 0.225, (0, 4, 8, 13, 17, 22, 26, 31, 35)),
        (12, 0.25, (0, 4, 8)),
        (13, 0.25, (0, 3, 6, 9)),
        (4, 0.01, (0,)),
        (1, 0.25, (0,)),
        (5, 1.0, (0, 1, 2, 3, 4)),
    ],
)
def test_sparse_uniform(num_layers: int, fraction: float, expected: tuple[int, ...]) -> None:
    selector = LAYER_SELECTORS.build({"name": "sparse_uniform", "fraction": fraction})
    assert selector(num_layers) == expected


def test_a_quarter_is_the_default_and_all_is_all() -> None:
    assert LAYER_SELECTORS.build({"name": "sparse_uniform"})(32) == tuple(range(0, 32, 4))
    assert LAYER_SELECTORS.build({"name": "all"})(7) == tuple(range(7))


def test_the_count_is_rounded_up_from_the_decimal_number() -> None:
    # In floats 0.07 * 100 is 7.000000000000001.
    assert len(SparseUniform(fraction=0.07)(100)) == 7
    assert len(SparseUniform(fraction=0.0701)(100)) == 8


@given(num_layers=st.integers(1, 200), percent=st.integers(1, 100))
def test_gaps_are_even(num_layers: int, percent: int) -> None:
    chosen = SparseUniform(fraction=percent / 100)(num_layers)
    assert len(chosen) == -(-percent * num_layers // 100)
    assert list(chosen) == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < num_layers
    gaps = {b - a for a, b in zip(chosen, (*chosen[1:], num_layers), strict=True)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(RecipeError, match=r"fraction: found .*more than 0 and at most 1"):
        SparseUniform(fraction=fraction)


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean 'sparse_uniform'"):
        LAYER_SELECTORS.build({"name": "sparse_unifrm"})


@pytest.mark.parametrize(
    ("node", "num_layers", "expected"),
    [
        # With 8 of 32 layers, as the paper compares them.
        ({"name": "consecutive", "where": "bottom"}, 32, range(8)),
        ({"name": "consecutive", "where": "mid_bottom"}, 32, range(8, 16)),
        ({"name": "consecutive", "where": "mid_top"}, 32, range(16, 24)),
        ({"name": "consecutive", "where": "top"}, 32, range(24, 32)),
        ({"name": "consecutive", "where": "mid_top", "fraction": 0.75}, 8, range(2, 8)),
        ({"name": "hybrid"}, 32, (0, 1, 2, 3, 28, 29, 30, 31)),
        ({"name": "hybrid", "count": 3}, 6, (0, 1, 5)),
        ({"name": "hybrid", "count": 1}, 6, (0,)),
        ({"name": "visual_region"}, 32, (0, 4, 8, 12, 18, 22, 26, 30)),
        ({"name": "visual_region", "ids": "code"}, 32, (1, 5, 9, 13, 19, 23, 27, 31)),
        ({"name": "every", "k": 4}, 12, (0, 4, 8)),
        ({"name": "every", "k": 4, "first": 3}, 12, (3, 7, 11)),
        ({"name": "listed", "ids": [5, 0, -1, 11]}, 12, (0, 5, 11)),
        ({"name": "sparse_uniform", "count": 6}, 30, (0, 5, 10, 15, 20, 25)),
    ],
)
def test_which_layers(node: dict[str, Any], num_layers: int, expected: Any) -> None:
    assert LAYER_SELECTORS.build(node)(num_layers) == tuple(expected)


def test_scores_choose_and_ties_go_to_the_lower_layer() -> None:
    scores = [0.1, 0.5, 0.5, 0.9, 0.0, 0.5]
    node = {"name": "by_score", "measure": "block_influence", "count": 3}
    assert LAYER_SELECTORS.build(node)(6, scores) == (1, 2, 3)
    assert LAYER_SELECTORS.build(node | {"keep": "lowest"})(6, scores) == (0, 1, 4)


def test_rotation_is_a_function_of_the_step() -> None:
    rotating = Rotating(count=2, every_steps=5)
    drawn = [rotating.at(step, 12) for step in range(100)]
    assert drawn[0] == rotating(12)
    assert all(len(set(one)) == 2 and one == tuple(sorted(one)) for one in drawn)
    assert all(drawn[step] == drawn[step - step % 5] for step in range(100))
    assert len(set(drawn)) > 10
    assert {layer for one in drawn for layer in one} == set(range(12))
    assert drawn != [Rotating(count=2, every_steps=5, seed=1).at(step, 12) for step in range(100)]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "visual_region"}, "visual_region is for 32 layers, the language model has 12"),
        ({"name": "sparse_uniform", "count": 13}, "count: found 13, but .* has 12 layers"),
        ({"name": "sparse_uniform", "count": 0}, "count: found 0, expected at least 1"),
        ({"name": "listed", "ids": [3, 12]}, r"ids: \[12\] do not exist; .* layers 0 to 11"),
        ({"name": "listed", "ids": []}, "ids: none is listed"),
        ({"name": "every", "k": 0}, "k: found 0, expected at least 1"),
        ({"name": "every", "k": 3, "first": 12}, "first: found 12, but .* layers 0 to 11"),
        ({"name": "by_score", "measure": "parameter_change"}, "tuned: found None, expected a tune"),
        (
            {"name": "by_score", "measure": "block_influence", "tuned": "x"},
            "tuned: found x, expected none",
        ),
        ({"name": "rotating", "every_steps": 0}, "every_steps: found 0, expected at least 1"),
    ],
)
def test_choices_that_fit_no_model_are_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        LAYER_SELECTORS.build(node)(12)
