"""Trials are a function of the seed and of earlier results, also after restarts."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.sweep.choices import CHOICES, Choice
from consomme.sweep.registry import SEARCHERS
from consomme.sweep.searchers import Keys, Search

LR = {"name": "log_uniform", "low": 1e-5, "high": 1e-2}
LAYERS = {"name": "choice", "values": [{"name": "all"}, {"name": "hybrid"}]}


def space(**nodes: dict[str, Any]) -> dict[str, Choice]:
    return {key: CHOICES.build(node, key) for key, node in nodes.items()}


def run(search: Search, score: Callable[[Keys], float], start: int = 0) -> list[Keys]:
    """Run a search to its end, one trial after the other."""
    trials: list[Keys] = []
    while (keys := search.ask()) is not None:
        search.tell(start + len(trials), score(keys))
        trials.append(keys)
    return trials


def near_a_thousandth(keys: Keys) -> float:
    """Best at lr 0.001 with `hybrid`."""
    return -abs(math.log10(keys["lr"]) + 3) + (keys["layers"]["name"] == "hybrid")


def test_a_grid_has_every_combination_once_in_order() -> None:
    node = {"name": "int_uniform", "low": 1, "high": 3}
    search = SEARCHERS.build({"name": "grid"}).start(space(layers=LAYERS, seed=node), "max")
    asked = run(search, lambda keys: 0.0)
    assert [(keys["layers"]["name"], keys["seed"]) for keys in asked] == [
        (name, seed) for name in ("all", "hybrid") for seed in (1, 2, 3)
    ]


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"every value of lr.*num_trials"):
        SEARCHERS.build({"name": "grid"}).list_trials(space(lr=LR, layers=LAYERS))


def test_more_random_trials_are_the_same_ones_and_some_more() -> None:
    known = [
        SEARCHERS.build({"name": "random", "num_trials": n, "seed": 3}).list_trials(space(lr=LR))
        for n in (5, 20)
    ]
    assert known[0] == (known[1] or [])[:5]
    drawn = [keys["lr"] for keys in known[1] or []]
    assert len(set(drawn)) == 20
    assert all(1e-5 <= lr <= 1e-2 and lr == float(f"{lr:.6g}") for lr in drawn)
    # Log-uniform: about a third in each of the three decades.
    assert sum(lr < 1e-4 for lr in drawn) >= 3


def test_optuna_learns_and_random_does_not() -> None:
    lr_and_layers = space(lr=LR, layers=LAYERS)
    best = {}
    for name in ("optuna", "random"):
        search = SEARCHERS.build({"name": name, "num_trials": 40, "seed": 1}).start(
            lr_and_layers, "max"
        )
        asked = run(search, near_a_thousandth)
        best[name] = sum(map(near_a_thousandth, asked[-10:])) / 10
    assert best["optuna"] > best["random"] + 0.5


@pytest.mark.parametrize("done", [3, 12])
def test_optuna_continues_as_if_it_had_not_been_interrupted(done: int) -> None:
    lr_and_layers = space(lr=LR, layers=LAYERS)
    searcher = SEARCHERS.build({"name": "optuna", "num_trials": 16, "seed": 5})
    whole = run(searcher.start(lr_and_layers, "max"), near_a_thousandth)
    again = searcher.start(lr_and_layers, "max")
    for number, keys in enumerate(whole[:done]):
        again.replay(keys)
        again.tell(number, near_a_thousandth(keys))
    assert run(again, near_a_thousandth, start=done) == whole[done:]


def test_optuna_follows_the_mode_and_avoids_failures() -> None:
    searcher = SEARCHERS.build({"name": "optuna", "num_trials": 30, "num_random": 6})
    asked = []
    search = searcher.start(space(lr=LR), "min")
    while (keys := search.ask()) is not None:
        failed = keys["lr"] > 5e-3
        search.tell(len(asked), None if failed else abs(math.log10(keys["lr"]) + 4))
        asked.append(keys["lr"])
    late = [abs(math.log10(lr) + 4) for lr in asked[-10:]]
    # The mean distance is 0.83 for random draws, and 2 for the wrong mode.
    assert sum(late) / 10 < 0.6


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "choice", "values": []}, "found none"),
        ({"name": "choice", "values": [1, 2, 1]}, "found 1 more than once"),
        ({"name": "uniform", "low": 2, "high": 1}, "less than high"),
        ({"name": "log_uniform", "low": 0, "high": 1}, "more than 0"),
        ({"name": "int_uniform", "low": 3, "high": 3}, "less than high"),
    ],
)
def test_invalid_choices_are_refused(node: dict[str, Any], message: str) -> None:
    (problem,) = CHOICES.problems(node, "space.lr")
    assert message in problem
    assert problem.startswith("space.lr")


DATA = {"name": "additions", "always": ["base"], "candidates": ["a", "b", "c", "d"]}
WORTH = {"base": 0.5, "a": 0.1, "b": -0.05, "c": 0.02, "d": 0.0}


def worth(keys: Keys) -> float:
    """`c` helps only without `a`."""
    data = keys["data"]
    return sum(WORTH[one] for one in data) - 0.05 * ("a" in data and "c" in data)


def forward(**nodes: dict[str, Any]) -> Search:
    node = {"name": "forward_selection"}
    return SEARCHERS.build(node).start(space(**{"data": DATA, **nodes}), "max")


def test_forward_selection_keeps_what_helps() -> None:
    asked = run(forward(seed={"name": "choice", "values": [3]}), worth)
    assert all(keys["seed"] == 3 for keys in asked)
    # `a` stays; neither `b` nor `c` improves on it; nor does `d`, which changes nothing.
    assert [keys["data"] for keys in asked] == [
        ["base"],
        ["base", "a"],
        ["base", "a", "b"],
        ["base", "a", "c"],
        ["base", "a", "d"],
    ]
    node = SEARCHERS.build({"name": "forward_selection"})
    assert node.count_trials(space(data=DATA)) == 5
    least = node.start(space(data=DATA), "min")
    assert [keys["data"] for keys in run(least, worth)] == [
        ["base"], ["base", "a"], ["base", "b"], ["base", "b", "c"], ["base", "b", "d"],
    ]  # fmt: skip
    empty = node.start(space(data={**DATA, "always": []}), "max")
    assert [keys["data"] for keys in run(empty, worth)][:3] == [["a"], ["a", "b"], ["a", "c"]]


def test_forward_selection_waits_and_goes_on_where_it_was() -> None:
    search = forward()
    first = search.ask()
    assert first == {"data": ["base"]}
    assert search.ask() is None
    assert search.is_waiting
    search.tell(0, 0.5)
    second = search.ask()
    assert second == {"data": ["base", "a"]}
    # A trial that failed adds nothing, until it is tried again and succeeds.
    search.tell(1, None)
    third = search.ask()
    assert third == {"data": ["base", "b"]}
    again = forward()
    for keys in (first, second, third):
        again.replay(keys)
    again.tell(0, 0.5)
    assert again.is_waiting
    again.tell(1, 0.6)
    assert again.ask() == {"data": ["base", "a", "b"]}
    again.tell(3, 0.1)
    rest = run(again, worth, start=4)
    assert [keys["data"] for keys in rest] == [["base", "a", "c"], ["base", "a", "d"]]
    assert not again.is_waiting


@pytest.mark.parametrize(
    "nodes",
    [{"data": LR}, {"more": DATA}, {"lr": LR}, {"layers": LAYERS}],
    ids=["none", "two", "range", "several"],
)
def test_forward_selection_adds_to_one_list(nodes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="forward_selection adds to one list"):
        SEARCHERS.build({"name": "forward_selection"}).list_trials(space(**{"data": DATA, **nodes}))


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_other_searchers_draw_additions_too(searcher: str) -> None:
    node = SEARCHERS.build({"name": searcher, "num_trials": 20})
    asked = run(node.start(space(data={**DATA, "always": []}), "max"), worth)
    drawn = {tuple(keys["data"]) for keys in asked}
    assert len(drawn) > 4
    assert () not in drawn
    if searcher == "optuna":
        again = node.start(space(data={**DATA, "always": []}), "max")
        for number, keys in enumerate(asked[:10]):
            again.replay(keys)
            again.tell(number, worth(keys))
        assert run(again, worth, start=10) == asked[10:]
