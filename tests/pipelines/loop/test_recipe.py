"""A loop's recipe is checked whole before its first stage starts."""

from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.base.recipe import check_recipe
from consomme.pipelines.loop.recipe import LoopRecipe


def problems_of(root: Path, stages: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(RecipeError) as raised:
        check_recipe(LoopRecipe, {"name": "chain", "root": str(root), "stages": stages, **options})
    assert list(root.iterdir()) == [], "nothing may run before the recipe is right"
    return str(raised.value)


GOOD: list[dict[str, Any]] = [
    {"name": "data", "verb": "prepare", "recipe": {"source": {"name": "scenes", "num": 4}}},
    {"name": "scores", "verb": "score", "recipe": {"inputs": ["@data/data"], "model": "m"}},
    {"name": "low", "verb": "filter", "recipe": {"scores": "@scores", "keep": {"name": "all"}}},
]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    stages = [
        {"name": "data", "verb": "prepare", "recipe": {"sourc": {"name": "scenes"}}},
        {"name": "scores", "verb": "scor", "recipe": {}},
        {
            "name": "low",
            "verb": "filter",
            "recipe": {"scores": "@dat", "keep": {"name": "lowest_fractoin"}},
        },
        {"name": "data", "verb": "evaluate", "recipe": {"batch_sise": 3}},
        {"name": "tune", "verb": "train", "recipe": {"num_steps": "many"}},
    ]
    summary = [{"label": "kept", "value": "lo:filter/kept | low:filter/kept"}]
    message = problems_of(tmp_path, stages, summary=summary)
    for expected in (
        "stages[0] (data): sourc: unknown key; did you mean 'source'",
        "unknown verb 'scor'; did you mean 'score'",
        "@dat is no earlier stage; did you mean 'data'",
        "did you mean 'lowest_fraction'",
        "stages[3] (data): the name is taken by an earlier stage",
        "batch_sise",
        "num_steps",
        "'lo:filter/kept' names no stage; did you mean 'low'",
    ):
        assert expected in message, f"{expected!r} not in:\n{message}"
    assert "'low:filter/kept'" not in message


def test_a_stage_may_only_refer_to_earlier_ones(tmp_path: Path) -> None:
    message = problems_of(tmp_path, GOOD[1:])
    assert "@data is no earlier stage" in message
    # References are found at any depth.
    nested = [
        *GOOD,
        {"name": "t", "verb": "train", "recipe": {"model": "m", "data": [{"view": "@hgih"}]}},
    ]
    assert "@hgih is no earlier stage" in problems_of(tmp_path, nested)


def test_names_are_needed_for_everything(tmp_path: Path) -> None:
    message = problems_of(tmp_path, [{**GOOD[0], "recipe": {}}])
    assert "source" in message
