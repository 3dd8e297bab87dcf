"""A user's own benchmark is asked by actors, which get it with what they are asked."""

from pathlib import Path

import pytest
from tests.base.test_own_modules import BENCHMARK, written

from consomme.base import own_modules
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.soup import run as soup
from consomme.pipelines.soup.recipe import SoupRecipe

NANO = "package://models/nano"


@pytest.mark.ray
@pytest.mark.long
def test_it_is_asked_by_evaluate_and_soup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_ray: object
) -> None:
    # Relative, so that no actor, which has another current directory, finds the file.
    monkeypatch.chdir(tmp_path)
    written(tmp_path, BENCHMARK)
    recipe = EvaluateRecipe(
        name="own",
        root=str(tmp_path / "runs"),
        models={"nano": NANO},
        modules=("my_bench.py",),
        benchmarks=({"name": "sums"},),
        num_actors=1,
    )
    done = evaluate.run(recipe)
    assert 0 <= done.metrics["evaluate/nano/sums/accuracy_fraction"] <= 1
    assert "modules[0]" in done.inputs
    made = soup.run(
        SoupRecipe(
            name="own",
            root=str(tmp_path / "runs"),
            ingredients={"a": NANO, "b": NANO},
            modules=("my_bench.py",),
            benchmark={"name": "sums"},
            num_actors=1,
        )
    )
    assert made.decisions["chosen_by"] == "sums"
    # Its text decides what run it is.
    Path("my_bench.py").write_text(BENCHMARK + "\n")
    assert evaluate.open_run(recipe).fingerprint != done.fingerprint
    for loaded in list(own_modules._loaded.values()):
        own_modules._forget(loaded)
