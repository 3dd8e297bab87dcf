"""Rounds of a loop: who refers to whom, when it ends, what is looked at without running."""

from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.base.recipe import check_recipe, load_recipe
from consomme.cli import run_command
from consomme.pipelines.loop import plan as loop_plan
from consomme.pipelines.loop import run as loop
from consomme.pipelines.loop.chain import Saturation
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.rounds import best_of, is_saturated
from consomme.pipelines.loop.steps import all_steps, last_steps

STOP = Saturation(metric="m:x")
DATA = [{"inputs": ["@data/data"]}]


def scenes(**more: Any) -> dict[str, Any]:
    return {"source": {"name": "scenes", "num": 3, **more}}


def recipe(root: Path, **changes: Any) -> LoopRecipe:
    values: dict[str, Any] = {
        "name": "chain",
        "root": str(root),
        "values": {"base": "package://models/nano", "num": 4},
        "stages": [
            {"name": "data", "verb": "prepare", "recipe": scenes(num="{num}")},
            {
                "name": "tune-0",
                "verb": "train",
                "recipe": {"model": "{base}", "data": [{"inputs": ["@data/data"]}]},
            },
        ],
        "rounds": {
            "max_rounds": 2,
            "initial": {"tune": "tune-0"},
            "stages": [
                {
                    "name": "words",
                    "verb": "recaption",
                    "recipe": {
                        "inputs": ["@data/data"],
                        "model": "@previous:tune",
                        "round": "{round}",
                    },
                },
                {
                    "name": "tune",
                    "verb": "train",
                    "recipe": {
                        "model": "{base}",
                        "data": [{"inputs": ["@data/data"], "captions": "@words"}],
                    },
                },
            ],
        },
        "after": [
            {
                "name": "final",
                "verb": "train",
                "recipe": {"model": "@best:tune", "data": DATA},
            }
        ],
    }
    return check_recipe(LoopRecipe, {**values, **changes})


@pytest.mark.parametrize(
    ("values", "patience", "best", "is_over"),
    [
        ([0.5], 1, 0, False),
        ([0.5, 0.6], 1, 1, False),
        ([0.5, 0.6, 0.6], 1, 1, True),
        ([0.5, 0.6, 0.55, 0.7], 2, 3, False),
        ([0.5, 0.6, 0.55, 0.6], 2, 1, True),
        ([0.5, 0.4], 1, 0, True),
        ([None, 0.4], 1, 1, False),
        ([None, 0.4, 0.3], 1, 1, True),
    ],
)
def test_a_loop_ends_when_nothing_is_gained(
    values: list[float | None], patience: int, best: int, is_over: bool
) -> None:
    stop = Saturation(metric="m:x", patience=patience)
    assert best_of(values, stop) == best
    assert is_saturated(values, stop) == is_over
    mirrored = [None if value is None else -value for value in values]
    lower = Saturation(metric="m:x", patience=patience, better="lower")
    assert best_of(mirrored, lower) == best
    assert is_saturated(mirrored, lower) == is_over


def test_a_gain_too_small_to_count_is_none() -> None:
    stop = Saturation(metric="m:x", min_gain=0.05)
    assert is_saturated([0.5, 0.54], stop)
    assert not is_saturated([0.5, 0.56], stop)


def test_each_round_reads_what_the_one_before_made(tmp_path: Path) -> None:
    chain = recipe(tmp_path)
    steps = {step.name: step for step in all_steps(chain)}
    assert list(steps) == ["data", "tune-0", "words-1", "tune-1", "words-2", "tune-2", "final"]
    assert steps["data"].recipe["source"]["num"] == 4
    assert steps["words-1"].names["previous:tune"] == "tune-0"
    assert steps["words-2"].names["previous:tune"] == "tune-1"
    assert steps["words-2"].recipe["round"] == 2
    assert steps["tune-2"].names["words"] == "words-2"
    assert steps["tune-2"].recipe["model"] == "package://models/nano"
    (final,) = last_steps(chain, best=1, last=2)
    assert final.names["best:tune"] == "tune-1"
    assert final.names["last:tune"] == "tune-2"
    (unmoved,) = last_steps(chain, best=0, last=2)
    assert unmoved.names["best:tune"] == "tune-0"


def test_everything_wrong_with_the_rounds_is_said_at_once(tmp_path: Path) -> None:
    rounds = {
        "max_rounds": 0,
        "initial": {"tun": "tune-0"},
        "stages": [
            {"name": "words", "verb": "recaption", "recipe": {"model": "@previous:tune"}},
            {
                "name": "tune",
                "verb": "train",
                "recipe": {"model": "@word", "data": DATA},
            },
        ],
        "early_stop": {"metric": "evaluat:x", "start": "nobody:x", "patience": 0},
        "table": [{"label": "a", "value": "tune-0:x > tunes:x"}],
    }
    with pytest.raises(RecipeError) as raised:
        recipe(tmp_path, rounds=rounds, after=[])
    for expected in (
        "rounds.max_rounds: found 0",
        "'tun' is no stage of the rounds; did you mean 'tune'",
        "rounds.early_stop.metric: 'evaluat:x' names no stage",
        "rounds.early_stop.start: 'nobody:x' names no stage",
        "rounds.early_stop.patience: found 0",
        "rounds.table[0]: 'tunes:x' names no stage; did you mean 'tune'",
    ):
        assert expected in str(raised.value), f"{expected!r} not in:\n{raised.value}"
    with pytest.raises(RecipeError) as raised:
        recipe(tmp_path, rounds={**rounds, "max_rounds": 2, "initial": {}, "early_stop": None})
    message = str(raised.value)
    assert "rounds.stages[0] (words): @previous:tune is no earlier stage; say what" in message
    assert "rounds.stages[1] (tune): @word is no earlier stage; did you mean 'words'" in message


def test_a_plan_says_what_is_done_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [
        {"name": "data", "verb": "prepare", "recipe": scenes()},
        {"name": "more", "verb": "prepare", "recipe": scenes(first_seed=9)},
    ]
    rounds = {
        "max_rounds": 2,
        "stages": [{"name": "extra", "verb": "prepare", "recipe": scenes(first_seed="{round}")}],
    }
    first = recipe(tmp_path, stages=stages[:1], rounds=None, after=[])
    assert [row[2] for row in loop_plan.plan(first).table["rows"]] == ["to do"]
    assert list(tmp_path.iterdir()) == []
    loop.run(first)
    before = sorted(tmp_path.rglob("*"))
    whole = recipe(tmp_path, stages=stages, rounds=rounds, after=[])
    seen = loop_plan.plan(whole)
    assert seen.table["title"] == "chain: 1 of 4 stages are done"
    assert [row[0] for row in seen.table["rows"]] == ["data", "more", "extra-1", "extra-2"]
    assert seen.table["rows"][0][2].startswith("done in")
    assert sorted(tmp_path.rglob("*")) == before
    path = tmp_path / "chain.yaml"
    path.write_text(
        f"name: chain\nroot: {tmp_path}\nstages:\n"
        "- {name: data, verb: prepare, recipe: {source: {name: scenes, num: 3}}}\n"
        "- {name: low, verb: filter, recipe: {scores: '@data', keep: {name: lowest_fraction}}}\n"
    )
    assert run_command(["loop", str(path), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 stages are done" in shown
    assert "only a preview, no run was made" in shown
    assert run_command(["loop", str(path), "--plna"]) == 2
    assert "the one option is --plan" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["self_augment", "self_augment_emoji"])
def test_a_plan_of_which_nothing_is_done_shows_every_round(
    name: str, debug_vlm: Path, tmp_path: Path
) -> None:
    path = Path(__file__).parents[3] / "recipes" / "loop" / f"{name}.yaml"
    words = [f"root={tmp_path}", f"values.base={debug_vlm}"][: 1 + (name == "self_augment")]
    seen = loop_plan.plan(load_recipe(LoopRecipe, path, words))
    states = {row[0]: row[2] for row in seen.table["rows"]}
    assert {f"recaption-{number}" for number in (1, 2, 3)} <= states.keys()
    assert all(state.startswith("to do") for state in states.values())
    assert "rounds 1 to 3 run unless" in seen.notes[0]
