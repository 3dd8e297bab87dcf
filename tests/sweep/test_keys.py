"""Dotted keys set values inside a recipe; keys that lead nowhere are reported."""

from consomme.sweep.keys import label, merged, set_value

RECIPE = {"lr": 0.1, "layers": {"name": "all"}, "data": [{"inputs": ["a"]}]}


def test_merging_replaces_a_strategy_and_changes_parameters() -> None:
    base = {"layers": {"name": "sparse_uniform", "fraction": 0.25}, "lr": 0.1}
    assert merged(base, {"layers": {"fraction": 0.5}})["layers"] == {
        "name": "sparse_uniform",
        "fraction": 0.5,
    }
    assert merged(base, {"layers": {"name": "all"}})["layers"] == {"name": "all"}
    assert base["layers"] == {"name": "sparse_uniform", "fraction": 0.25}


def test_keys_reach_into_mappings_and_lists() -> None:
    values = merged(RECIPE, {})
    assert set_value(values, "lr", 0.2) is None
    assert set_value(values, "data.0.fraction", 0.5) is None
    assert set_value(values, "language_model.rank", 8) is None
    assert values == {
        "lr": 0.2,
        "layers": {"name": "all"},
        "data": [{"inputs": ["a"], "fraction": 0.5}],
        "language_model": {"rank": 8},
    }
    assert RECIPE["data"] == [{"inputs": ["a"]}]


def test_keys_that_lead_nowhere_are_named() -> None:
    values = merged(RECIPE, {})
    assert set_value(values, "data.3.fraction", 0.5) == (
        "data.3: found '3', expected a number below 1, the length of the list"
    )
    assert set_value(values, "lr.peak", 0.5) == "lr: found 0.1, which has no peak"
    assert values == RECIPE


def test_labels_are_short() -> None:
    keys = {"layers": {"name": "sparse_uniform", "count": 4}, "lr": 0.0005, "data.0.view": None}
    assert label(keys) == "layers=sparse_uniform (count=4), lr=0.0005, data.0.view=null"
