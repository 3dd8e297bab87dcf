"""A loop that was broken off goes on with the commits of its first stages."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.hub_server import folder_files, hub_server

import consomme
from consomme.base.errors import RecipeError
from consomme.base.recipe import check_recipe
from consomme.datasets.sources import SceneSource
from consomme.execution.session import shared_ray
from consomme.pipelines.loop.pins import begun_pins
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.run import run
from consomme.storage.writers import tar_bytes

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

NANO = folder_files(Path(consomme.__file__).parent / "models" / "nano")


def test_a_loop_keeps_its_commits_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = list(SceneSource(num=2)())
    (tmp_path / "first.tar").write_bytes(tar_bytes(samples[:1]))
    stage: dict[str, Any] = {"model": "org/nano", "num_actors": 1}
    stages = [
        {"name": name, "verb": "score", "recipe": {**stage, "inputs": [f"{name}.tar"]}}
        for name in ("first", "second")
    ]
    values = {"name": "x", "root": "runs", "stages": stages}
    recipe: LoopRecipe = check_recipe(LoopRecipe, values)
    with hub_server() as hub:
        repo = hub.model("org/nano")
        before = repo.commit(NANO)
        for name, value in hub.env(tmp_path).items():
            monkeypatch.setenv(name, value)
        with shared_ray():
            with pytest.raises(RecipeError, match=r"second\.tar: no such file"):
                run(recipe)
            after = repo.commit({**NANO, "README.md": b"another card"})
            assert begun_pins(recipe) == {"hf://org/nano@main": before}
            (tmp_path / "second.tar").write_bytes(tar_bytes(samples[1:]))
            run(recipe)
            pins = [
                json.loads(path.read_text())["pins"]
                for path in sorted(tmp_path.glob("runs/score/*/manifest.json"))
            ]
            assert pins == [{"hf://org/nano@main": before}] * 2
            # It is done, so the next one reads what the branch is now.
            assert begun_pins(recipe) == {}
            run(recipe)
            found = [str(path) for path in tmp_path.glob("runs/score/*/manifest.json")]
            assert len(found) == 4
            assert sum(after in Path(path).read_text() for path in found) == 2
