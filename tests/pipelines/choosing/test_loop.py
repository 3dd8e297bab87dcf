"""A loop ends and chooses its best round by a user's file or by several benchmarks."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.own_questions import colors, open_colors, texts, weighted

from consomme.base.recipe import check_recipe
from consomme.pipelines.loop import plan as loop_plan
from consomme.pipelines.loop import run as loop
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.storage.ledger.run_folder import load_manifest

NANO = "package://models/nano"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("several", [False, True], ids=["file", "weighted"])
def test_the_best_round(tmp_path: Path, one_ray: object, several: bool) -> None:
    own: dict[str, Any] = colors(tmp_path, 700_000, 6)
    if several:
        own = weighted(own, open_colors(tmp_path, 720_000, 4))
    train = {
        "model": "@previous:tune",
        "data": [{"inputs": ["@data/data"]}],
        "num_steps": 2,
        "global_batch": 4,
        "seed": "{round}",
    }
    recipe = check_recipe(
        LoopRecipe,
        {
            "name": "own",
            "root": str(tmp_path),
            "stages": [
                {
                    "name": "data",
                    "verb": "prepare",
                    "recipe": {"source": {"name": "scenes", "num": 40}},
                },
                {
                    "name": "tune-0",
                    "verb": "train",
                    "recipe": {**train, "model": NANO, "seed": 0},
                },
            ],
            "rounds": {
                "max_rounds": 2,
                "initial": {"tune": "tune-0"},
                "stages": [{"name": "tune", "verb": "train", "recipe": train}],
                "early_stop": {
                    "benchmark": own,
                    "model": "@tune",
                    "start_model": "@tune-0",
                    "patience": 2,
                    "guards": [
                        {
                            "benchmark": texts(tmp_path, 600_000, 6),
                            "at_most_worse": 1.0,
                        }
                    ],
                },
            },
            "after": [
                {
                    "name": "shown",
                    "verb": "evaluate",
                    "recipe": {
                        "models": {"best": "@best:tune"},
                        "benchmarks": [colors(tmp_path, 900_000, 3)],
                    },
                }
            ],
        },
    )
    done = loop.run(recipe)
    rounds = done.decisions["rounds"]
    assert rounds["metric"] == ("weighted" if several else "colors-700000")
    assert len(rounds["values"]) == 3
    assert rounds["scores"] == rounds["values"][1:]
    best = max(range(3), key=lambda k: (rounds["values"][k], -k))
    assert rounds["best"] == best
    assert [len(one) for one in rounds["guards"]] == [1, 1]
    rows = {row[0]: row[2] for row in loop_plan.plan(recipe).table["rows"]}
    assert all(state.startswith("done") for state in rows.values())
    assert {"choice-0", "choice-1", "choice-2"} < set(rows)


@pytest.mark.ray
@pytest.mark.long
def test_a_soup_of_what_a_sweep_has_trained(tmp_path: Path, one_ray: object) -> None:
    """Sweep and soup as stages: the soup chooses among the models of all trials."""
    stages = [
        {"name": "data", "verb": "prepare", "recipe": {"source": {"name": "scenes", "num": 40}}},
        {
            "name": "tries",
            "verb": "sweep",
            "recipe": {
                "train": {
                    "name": "try",
                    "model": NANO,
                    "data": [{"inputs": ["@data/data"]}],
                    "num_steps": 2,
                    "global_batch": 4,
                },
                "space": {"seed": {"name": "choice", "values": [0, 1]}},
            },
        },
        {
            "name": "mixed",
            "verb": "soup",
            "recipe": {"ingredients": "@tries", "benchmark": colors(tmp_path, 700_000, 6)},
        },
        {
            "name": "shown",
            "verb": "evaluate",
            "recipe": {
                "models": {"soup": "@mixed"},
                "benchmarks": [colors(tmp_path, 900_000, 3)],
            },
        },
    ]
    values = {"name": "chain", "root": str(tmp_path), "stages": stages}
    recipe = check_recipe(LoopRecipe, values)
    done = loop.run(recipe)
    assert done.counts["stages"] == 4
    (mixed,) = (tmp_path / "soup").iterdir()
    found = load_manifest(str(mixed))
    assert found.decisions["labels"] == ["seed=0", "seed=1"]
    assert {Path(parent.url).parent.name for parent in found.parents} >= {"sweep", "train"}
    assert loop.run(recipe).is_found
