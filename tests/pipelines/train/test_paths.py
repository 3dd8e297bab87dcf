"""Relative data paths become absolute: Ray Train's workers have another current directory."""

from pathlib import Path

import pytest

from consomme.pipelines.train.context import with_absolute_paths
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("{}\n")
    recipe = TrainRecipe(
        name="x",
        model="m",
        data=(
            TrainSource(view="runs/filter/a", captions="runs/recaption/b"),
            TrainSource(inputs=("*.jsonl",), weight=2.0),
        ),
    )
    views, shards = with_absolute_paths(recipe).data
    assert views.view == f"{tmp_path}/runs/filter/a"
    assert views.captions == f"{tmp_path}/runs/recaption/b"
    assert views.inputs == ()
    assert shards == TrainSource(inputs=(f"{tmp_path}/a.jsonl",), weight=2.0)
    assert recipe.data[0].view == "runs/filter/a"
