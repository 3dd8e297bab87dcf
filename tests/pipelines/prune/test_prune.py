"""The verb: what goes, what stays, what is measured, on the debug model and on the shipped one."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.deep_families import write_deep

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import check_recipe, recipe_problems
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model
from consomme.ops.verify import verify
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.prune import run as prune
from consomme.pipelines.prune.job import PruneOutcome
from consomme.pipelines.prune.recipe import PruneRecipe
from consomme.pipelines.prune.report import sections
from consomme.pipelines.prune.samples import CalibrationSamples, calibration_recipe
from consomme.pipelines.prune.task import num_steps, prune_model
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.report import model as page
from consomme.storage.stores.open import open_store

NANO = "package://models/nano"
QUESTIONS = {"name": "scene_questions", "num": 4, "style": "outline"}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("scenes"))
    source = {"name": "scenes", "num": 30, "style": "outline"}
    done = prepare.run(PrepareRecipe(name="s", root=root, source=source, rows_per_shard=10))
    return f"{done.url}/data"


def recipe(root: Path, model: object, data: str, **values: Any) -> PruneRecipe:
    given = {
        "name": "p", "root": str(root), "model": str(model), "data": [{"inputs": [data]}],
        "num_samples": 4, "n_layers": 2, **values,
    }  # fmt: skip
    found: PruneRecipe = check_recipe(PruneRecipe, given)
    return found


def here(asked: PruneRecipe) -> tuple[PruneOutcome, Path]:
    """Prune in this process, without Ray."""
    opened = prune.open_run(asked)
    opened.start()
    *steps, outcome = prune_model(prune._job(opened))
    assert steps == [None] * num_steps(opened.recipe.counts)
    assert outcome is not None
    return outcome, Path(opened.folder.path)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_several_numbers_are_several_models(tmp_path: Path, debug_vlm: Path, scenes: str) -> None:
    asked = recipe(
        tmp_path, debug_vlm, scenes, n_layers=[0, 1, 3], num_samples=2, choose={"name": "greedy"},
        protect={"name": "sparse_uniform", "fraction": 0.25}, benchmarks=[QUESTIONS],
        diagnostics={"attention": True, "logit_lens": 3},
    )  # fmt: skip
    found, folder = here(asked)
    assert found.protected == [0, 4, 8]
    assert [row["n"] for row in found.models] == [0, 1, 3]
    first, third = (set(row["removed"]) for row in found.models[1:])
    assert first < third
    assert not third & {0, 4, 8}
    assert found.chosen == 3
    assert weights(folder / "removed-0/model") == weights(debug_vlm)
    assert weights(folder / "removed-3/model") == weights(folder / "model")
    for n in (0, 1, 3):
        model, _ = open_model(folder / f"removed-{n}/model")
        assert model.config.get_text_config().num_hidden_layers == 12 - n
    costs = [row["cost"] for row in found.models]
    assert costs[0]["cache_bytes"] * 9 == costs[2]["cache_bytes"] * 12
    assert costs[0]["num_parameters"] > costs[1]["num_parameters"] > costs[2]["num_parameters"]
    assert len(found.scores) == 12
    attention = found.diagnostics["attention"]
    assert len(attention) == 12
    assert all(0 < share < 1 for share in attention)
    assert [len(words) for words in found.diagnostics["logit_lens"]] == [3] * 12
    assert len(found.samples) == len(set(found.samples)) == 2
    assert "without 3 of the 12 layers" in (folder / "model/README.md").read_text()


def test_samples_are_drawn_by_the_seed(tmp_path: Path, debug_vlm: Path, scenes: str) -> None:
    model, processor = open_model(debug_vlm)
    chat = chat_encoder_for(model.config, processor)
    asked = [recipe(tmp_path, debug_vlm, scenes, seed=seed) for seed in (0, 0, 1)]
    drawn = [CalibrationSamples(calibration_recipe(one), 5, model, chat).ids for one in asked]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    every = CalibrationSamples(calibration_recipe(asked[0]), 50, model, chat)
    assert len(set(every.ids)) == 30
    assert every.num_images == 30


def trained(root: Path, layers: list[int], num_layers: int) -> str:
    """A finished run with the decisions of a training."""
    from consomme.execution.runs import Run

    asked = TrainRecipe(name="t", root=str(root), model=NANO, data=(TrainSource(inputs=("a",)),))
    opened: Run[None] = Run.open("train", asked, None)
    opened.start()
    return opened.finish(decisions={"layers": layers, "num_layers": num_layers}).url


def test_the_region_that_a_run_trained_stays(tmp_path: Path, debug_vlm: Path, scenes: str) -> None:
    region = [1, 2, 4, 5, 7, 8, 10, 11]
    url = trained(tmp_path, region, 12)
    asked = recipe(
        tmp_path, debug_vlm, scenes, n_layers=4, protect_run=url, num_samples=1,
        choose={"name": "lowest"},
    )  # fmt: skip
    opened = prune.open_run(asked)
    assert [parent.url for parent in opened.parents if parent.verb == "train"] == [url]
    found, _ = here(asked)
    assert found.protected == region
    assert found.models[1]["removed"] == [0, 3, 6, 9]
    with pytest.raises(RecipeError, match=r"there are no 2 neighbours"):
        here(recipe(tmp_path, debug_vlm, scenes, n_layers=2, protect_run=url, name="q"))
    other = trained(tmp_path / "other", [1], 6)
    with pytest.raises(RecipeError, match=r"protect_run: found a run of a model of 6 layers"):
        here(recipe(tmp_path, debug_vlm, scenes, n_layers=2, protect_run=other, name="r"))
    data = str(Path(scenes).parent)
    with pytest.raises(DataError, match=r"protect_run: found a prepare run"):
        prune.open_run(recipe(tmp_path, debug_vlm, scenes, protect_run=data))


def test_the_largest_number_that_loses_little_becomes_the_model(
    tmp_path: Path, scenes: str
) -> None:
    guard = {"benchmark": QUESTIONS, "at_most_worse": 0.0}
    found, folder = here(recipe(tmp_path, NANO, scenes, n_layers=[0, 8], guards=[guard]))
    loses = not all(one["passes"] for one in found.guards[8])
    assert loses
    assert found.chosen == 0
    assert weights(folder / "model") == weights(folder / "removed-0/model")
    with pytest.raises(DataError, match=r"already without 8 layers, scene_questions_outline"):
        here(recipe(tmp_path, NANO, scenes, n_layers=8, guards=[guard], name="q"))
    warn = guard | {"otherwise": "warn"}
    assert here(recipe(tmp_path, NANO, scenes, n_layers=8, guards=[warn], name="r"))[0].chosen == 8


def test_a_language_model_without_images(tmp_path: Path, scenes: str) -> None:
    folder = write_deep("qwen3", tmp_path / "qwen3")
    found, written = here(recipe(tmp_path, folder, scenes, n_layers=1))
    model, _ = open_model(written / "model")
    assert model.config.num_hidden_layers == 3
    assert found.models[1]["cost"]["cache_bytes"] == 3 * 2 * 2 * 8 * 4


def test_layers_that_a_family_needs_stay(tmp_path: Path, scenes: str) -> None:
    folder = write_deep("qwen3_vl", tmp_path / "qwen3_vl")
    choose = {"name": "lowest"}
    found, _ = here(recipe(tmp_path, folder, scenes, n_layers=2, choose=choose))
    assert found.protected == [0, 1]
    assert found.models[1]["removed"] == [2, 3]
    assert "layers 0, 1 stay in this family" in found.notes[0]
    with pytest.raises(RecipeError, match=r"found 3, but .* 4 layers, of which 2 are protected"):
        here(recipe(tmp_path, folder, scenes, n_layers=3, choose=choose, name="q"))


@pytest.mark.long
def test_putting_back_a_layer_that_training_changed_loses_what_it_learned(
    tmp_path: Path, scenes: str
) -> None:
    import torch

    model, processor = open_model(Path(prune.__file__).parents[2] / "models/nano")
    layer = model.get_submodule("model.language_model.layers")[5]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)
    model.save_pretrained(tmp_path / "tuned")
    processor.save_pretrained(tmp_path / "tuned")
    found, _ = here(
        recipe(
            tmp_path, tmp_path / "tuned", scenes, n_layers=1, benchmarks=[QUESTIONS],
            importance={"name": "parameter_change", "base": NANO}, choose={"name": "lowest"},
            diagnostics={"revert_to": NANO},
        )
    )  # fmt: skip
    assert found.scores[5] == max(found.scores) > 0
    whole, *layers = (one["scene_questions_outline"] for one in found.diagnostics["reversion"])
    changed = [k for k, figures in enumerate(layers) if figures != whole]
    assert changed in ([], [5])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"n_layers": []}, "n_layers: found an empty list"),
        ({"n_layers": -1}, "n_layers: found -1"),
        ({"data": []}, "data: found no source, but angular_distance observes"),
        ({"protect": {"name": "all"}, "protect_run": "r"}, "protect, protect_run: found both"),
        ({"protect": {"name": "rotating", "every_steps": 2}}, "protect: rotating selects other"),
        ({"diagnostics": {"revert_to": "m"}}, "diagnostics.revert_to: found a model, but no"),
        (
            {"choose": {"name": "greedy"}, "importance": {"name": "parameter_angle", "base": "m"}},
            "choose: greedy scores the layers anew",
        ),
    ],
)
def test_what_means_nothing_is_refused(values: dict[str, Any], problem: str) -> None:
    given = {"name": "p", "model": "m", "n_layers": 1, "data": [{"inputs": ["a.tar"]}]}
    (found,) = recipe_problems(PruneRecipe, {**given, **values})
    assert found.startswith(problem)


@pytest.mark.ray
def test_model_data_and_run_in_a_bucket(
    one_ray: object, s3_root: str, debug_vlm: Path, scenes: str
) -> None:
    store = open_store(s3_root)
    for name, folder in {"model": debug_vlm, "data": Path(scenes)}.items():
        for file in folder.iterdir():
            store.write(f"{name}/{file.name}", file.read_bytes())
    values = {"n_layers": [0, 2], "benchmarks": [QUESTIONS]}
    done = prune.run(
        check_recipe(
            PruneRecipe,
            {
                "name": "p", "root": f"{s3_root}/runs", "model": f"{s3_root}/model",
                "data": [{"inputs": [f"{s3_root}/data"]}], "num_samples": 4, **values,
            },
        )
    )  # fmt: skip
    assert verify(done.url).problems == ()
    written = open_store(done.url)
    assert written.read("removed-0/model/model.safetensors") == weights(debug_vlm)
    assert written.read("model/config.json") == written.read("removed-2/model/config.json")
    _check_report(done)


def _check_report(done: Manifest) -> None:
    (section,) = sections([done], {})
    strips = [one for one in section.blocks if isinstance(one, page.LayerStrip)]
    assert strips[0].rows == [("n = 2", 12, done.decisions["models"][1]["removed"])]
    assert "lacks 2 of 12 layers" in section.lead_text
