"""A soup chooses by a user's file and by several benchmarks, and guards its language."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.own_questions import colors, open_colors, texts, weighted

from consomme.base.errors import DataError, RecipeError
from consomme.evaluate.guards import Guard
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.report import run as report
from consomme.pipelines.soup import run as soup
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.storage.model_folder import model_folder

NANO = "package://models/nano"


def damaged(folder: Path, scale: float, part: str) -> str:
    """Copy the nano VLM, with noise on the tensors of one part."""
    folder.mkdir(parents=True)
    for path in Path(model_folder(NANO)).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    file = folder / "model.safetensors"
    tensors = load_file(file)
    noise = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if part in name and tensor.is_floating_point():
            added = torch.randn(tensor.shape, generator=noise) * tensor.float().std() * scale
            tensors[name] = (tensor.float() + added).to(tensor.dtype)
    save_file(tensors, file, {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "nano": NANO,
        "blind": damaged(folder / "blind", 3.0, "multi_modal_projector"),
        "mute": damaged(folder / "mute", 0.7, "language_model.model.layers.0."),
    }


def recipe(root: Path, models: dict[str, str], **changes: Any) -> SoupRecipe:
    values: dict[str, Any] = {
        "name": "soup",
        "root": str(root),
        "ingredients": models,
        "num_actors": 1,
        "searches": ({"name": "greedy"}, {"name": "maximum", "k": 1}),
        **changes,
    }
    return SoupRecipe(**values)


def answers(root: Path) -> set[str]:
    return {path.name for path in (root / "cache/answers").rglob("*.json")}


@pytest.mark.ray
@pytest.mark.long
def test_by_a_users_file_and_then_by_several(
    tmp_path: Path, models: dict[str, str], one_ray: object
) -> None:
    own, said = colors(tmp_path, 700_000, 12), open_colors(tmp_path, 800_000, 6)
    reported = colors(tmp_path, 900_000, 4)
    first = recipe(tmp_path, models, benchmark=own, report=(reported,))
    done = soup.run(first)
    singles = done.decisions["singles"]
    assert singles["nano"] > singles["blind"]
    best = max(range(3), key=lambda k: (list(singles.values())[k], -k))
    assert done.decisions["searches"]["maximum"]["chosen"] == (best,)
    assert done.decisions["chosen_by"] == "colors-700000"
    for label in ("greedy", "maximum", "best_single"):
        figures = done.decisions["report"][label]["colors-900000"]
        assert figures["num_questions"] == 4
    assert report.run_folder(done.url)
    # A model alone has the answers that evaluate gives it: nothing is asked again.
    known = answers(tmp_path)
    measured = evaluate.run(
        EvaluateRecipe(name="e", root=str(tmp_path), models=models, benchmarks=(own,))
    )
    assert answers(tmp_path) == known
    for label, score in singles.items():
        assert measured.metrics[f"evaluate/{label}/colors-700000/accuracy_fraction"] == score

    both = weighted(own, said, texts(tmp_path, 600_000, 4))
    done = soup.run(recipe(tmp_path, models, name="both", benchmark=both))
    measured = evaluate.run(
        EvaluateRecipe(name="b", root=str(tmp_path), models=models, benchmarks=(both,))
    )
    for label, score in done.decisions["singles"].items():
        assert measured.metrics[f"evaluate/{label}/weighted/score_fraction"] == score


@pytest.mark.ray
@pytest.mark.long
def test_a_soup_that_lost_its_language_is_not_chosen(
    tmp_path: Path, models: dict[str, str], one_ray: object
) -> None:
    own, language = colors(tmp_path, 700_000, 6), texts(tmp_path, 600_000, 8)
    guard = Guard(benchmark=language, at_most_worse=0.05)
    guarded = recipe(
        tmp_path,
        {label: models[label] for label in ("mute", "blind")},
        benchmark=own,
        base=NANO,
        guards=(guard,),
    )
    done = soup.run(guarded)
    assert done.decisions["searches"]["maximum"]["chosen"] == (1,), "mute lost its language"
    (kept,) = done.decisions["searches"]["greedy"]["guards"]
    assert kept["passes"]
    assert kept["low"] <= kept["difference"] <= kept["high"]
    assert kept["base_figures"]["bits_per_character"] > 0
    assert not done.decisions["ignores_guards"]
    lost = [
        step for step in done.decisions["searches"]["greedy"]["trace"] if step.get("fails_guards")
    ]
    assert (0,) in [step["members"] for step in lost]
    assert "lost more than the guards allow" in Path(report_of(done.url)).read_text()
    all_lost = replace(
        guarded, name="lost", ingredients={"mute": models["mute"], "m": models["mute"]}
    )
    with pytest.raises(DataError, match="language was lost"):
        soup.run(all_lost)
    warned = replace(all_lost, guards=(replace(guard, otherwise="warn"),))
    assert soup.run(warned).decisions["ignores_guards"]


def report_of(url: str) -> str:
    report.run_folder(url)
    return f"{url}/report.html"


def test_the_same_rows_do_not_choose_and_report(tmp_path: Path, models: dict[str, str]) -> None:
    own = colors(tmp_path, 700_000, 4)
    twice = recipe(tmp_path, models, benchmark=own, report=({**own, "max_rows": 2},))
    with pytest.raises(RecipeError, match=r"report\[0\]: 2 of its 2 .* benchmark, which chooses"):
        soup.run(twice)
    assert not (tmp_path / "soup").exists()
    soup.open_run(replace(twice, reports_what_it_chose_by=True))


def test_guards_need_a_base(tmp_path: Path, models: dict[str, str]) -> None:
    own = colors(tmp_path, 700_000, 2)
    with pytest.raises(RecipeError, match="base: missing"):
        recipe(tmp_path, models, benchmark=own, guards=(Guard(benchmark=own),))
    with pytest.raises(RecipeError, match="base: found a model, but no guards"):
        soup.open_run(recipe(tmp_path, models, benchmark=own, base=NANO))
    with pytest.raises(RecipeError, match="a guard of its own"):
        Guard(benchmark=weighted(own, own))
