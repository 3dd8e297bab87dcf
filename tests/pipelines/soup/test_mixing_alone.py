"""A soup without a benchmark: models mixed by a command, in any store, with nothing measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.soup.test_adapter_ingredients import low_rank, matrix_of
from tests.soup.test_mixing import checkpoint, state

from consomme.base.errors import CheckpointError, RecipeError
from consomme.cli import run_command
from consomme.ops.repair import _changed_inputs
from consomme.ops.verify import verify, verify_run
from consomme.pipelines.soup import report as soup_report
from consomme.pipelines.soup import run as soup
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.soup.ingredients import open_ingredient
from consomme.soup.methods import METHODS
from consomme.soup.mixing import ModelMix, mixed_tensors
from consomme.soup.opening import open_models
from consomme.storage.stores.open import open_store


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {
        name: str(checkpoint(tmp_path / name, state(seed, torch.bfloat16)))
        for name, seed in {"base": 0, "one": 1, "two": 2, "three": 3}.items()
    }


def recipe(tmp_path: Path, models: dict[str, str], **options: Any) -> SoupRecipe:
    ingredients = {name: models[name] for name in ("one", "two", "three")}
    values = {"name": "mixed", "ingredients": ingredients, "root": str(tmp_path / "runs")}
    return SoupRecipe(**{**values, **options})


@pytest.mark.parametrize("method", METHODS.names())
def test_each_method_writes_what_it_is_in_memory(
    tmp_path: Path, models: dict[str, str], method: str
) -> None:
    node = {"name": method}
    needs_base = METHODS.build(node).needs_base
    asked = recipe(
        tmp_path, models, method=node, weights={"one": 1, "two": 2, "three": 1},
        **({"base": models["base"]} if needs_base else {}),
    )  # fmt: skip
    done = soup.run(asked)
    assert verify(done.url).problems == ()
    assert done.decisions["shares"] == {"one": 0.25, "two": 0.5, "three": 0.25}
    written = load_file(Path(done.url, "model", "model.safetensors"))
    opened = [open_ingredient(models[name], name) for name in ("one", "two", "three")]
    base = open_ingredient(models["base"], "base") if needs_base else None
    mix = ModelMix.of(opened, [1, 2, 1], method=METHODS.build(node), base=base)
    found = dict(mixed_tensors(mix))
    assert all(torch.equal(tensor, found[name]) for name, tensor in written.items())
    assert soup.run(asked).is_found
    section = soup_report.sections([done], {})[0]
    assert f"mixed by name {method}" in section.lead_text
    other = soup.run(recipe(tmp_path, models, name="equal"))
    assert other.url != done.url


def test_the_command_mixes_and_previews(
    tmp_path: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(json.dumps({
        "name": "mix", "root": str(tmp_path / "runs"), "base": models["base"],
        "ingredients": {name: models[name] for name in ("one", "two")},
        "method": {"name": "ties", "density": 0.5}, "dtype": "float32", "max_shard_gb": 1e-7,
    }))  # fmt: skip
    assert run_command(["soup", str(path), "--preview"]) == 0
    said = capsys.readouterr().out
    assert "signs that disagree" in said
    assert "only a preview, no run was made" in said
    assert not list((tmp_path / "runs").glob("soup/*"))
    assert run_command(["soup", str(path)]) == 0
    (run,) = (tmp_path / "runs" / "soup").iterdir()
    files = sorted(path.name for path in (run / "model").glob("*.safetensors"))
    assert len(files) > 1
    mixed = {k: v for file in files for k, v in load_file(run / "model" / file).items()}
    assert mixed["a.weight"].dtype == torch.float32
    assert json.loads((run / "model" / "soup.json").read_text())["method"] == {
        "name": "ties", "density": 0.5, "scale": 1.0
    }  # fmt: skip


def test_models_and_run_in_a_bucket(
    s3_root: str, tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_root)
    for name in ("one", "two"):
        for file in Path(models[name]).iterdir():
            store.write(f"{name}/{file.name}", file.read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    there = {name: f"{s3_root}/{name}" for name in ("one", "two")}
    done = soup.run(SoupRecipe(name="mixed", ingredients=there, root=s3_root))
    local = {name: models[name] for name in there}
    here = soup.run(SoupRecipe(name="mixed", ingredients=local, root=str(tmp_path / "runs")))
    weights = open_store(done.url).read("model/model.safetensors")
    assert weights == Path(here.url, "model", "model.safetensors").read_bytes()
    assert list((tmp_path / "here").iterdir()) == [], "nothing is written to a folder called s3:"
    assert verify(done.url).problems == ()


def test_an_interrupted_write_is_written_again(tmp_path: Path, models: dict[str, str]) -> None:
    asked = recipe(tmp_path, models)
    whole = soup.run(asked)
    before = Path(whole.url, "model", "model.safetensors").read_bytes()
    again = recipe(tmp_path, models, root=str(tmp_path / "again"))
    opened = soup.open_run(again)
    folder = Path(opened.folder.url, "model")
    folder.mkdir(parents=True)
    (folder / "model.tmp").write_bytes(before[:100])
    (folder / "model.safetensors").write_bytes(before[:200])
    done = soup.run(again)
    assert Path(done.url, "model", "model.safetensors").read_bytes() == before
    assert verify(done.url).problems == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": {"name": "ties"}}, "base: missing; ties mixes differences"),
        ({"weights": {"one": 1, "two": 1}}, "weights.three: missing"),
        ({"weights": {"one": 1, "two": 1, "tree": 1}}, "no such ingredient; did you mean 'three'"),
        ({"weights": {"one": 0, "two": 0, "three": 0}}, "weights: found only zeros"),
        ({"searches": ({"name": "uniform"},)}, "benchmark: missing; searches choose by it"),
        ({"report": ({"name": "scene_captions", "num": 2},)}, "benchmark: missing; guards and"),
        ({"weights": {"one": 1, "two": 1, "three": 1},
          "benchmark": {"name": "scene_captions", "num": 2}}, "weights: found some with a bench"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(
    tmp_path: Path, models: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe(tmp_path, models, **options)
    assert message in str(raised.value)


def test_strangers_are_refused_before_anything_is_written(
    tmp_path: Path, models: dict[str, str]
) -> None:
    other = checkpoint(tmp_path / "other", state(5) | {"a.weight": torch.ones(6, 4)})
    strange = recipe(tmp_path, models, ingredients={"one": models["one"], "other": str(other)})
    with pytest.raises(CheckpointError, match=r"'a.weight' has shape \[5, 4\] against \[6, 4\]"):
        soup.run(strange)
    assert np.size(list((tmp_path / "runs").rglob("model*"))) == 0


def test_adapters_are_ingredients_of_their_base(tmp_path: Path, models: dict[str, str]) -> None:
    base = open_ingredient(models["base"])
    module, shape = matrix_of(base)
    for seed in (1, 2):
        low_rank(tmp_path / f"lora{seed}", seed, shape, module)
    asked = {"first": str(tmp_path / "lora1"), "second": str(tmp_path / "lora2")}
    with pytest.raises(RecipeError, match=r"base: missing; ingredients.first is an adapter"):
        soup.run(recipe(tmp_path, models, ingredients=asked))
    asked["whole"] = models["one"]
    with pytest.raises(RecipeError, match="base: found a model, but no guards"):
        soup.run(recipe(tmp_path, models, base=models["base"]))
    done = soup.run(recipe(tmp_path, models, ingredients=asked, base=models["base"]))
    assert verify(done.url).problems == ()
    opened = open_models(asked, models["base"])
    found = dict(mixed_tensors(ModelMix.of(opened.ingredients)))
    written = load_file(Path(done.url, "model", "model.safetensors"))
    assert all(torch.equal(tensor, found[name]) for name, tensor in written.items())
    told = json.loads(Path(done.url, "model", "soup.json").read_text())
    assert [one["folder"] for one in told["ingredients"]] == list(asked.values())
    assert soup.run(recipe(tmp_path, models, ingredients=asked, base=models["base"])).is_found
    weights = Path(done.url, "model", "model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert "cannot be repaired" not in verify_run(done.url, repair=True)
    again = soup.run(recipe(tmp_path, models, ingredients=asked, base=models["base"]))
    assert (again.url, again.is_found) == (done.url, False)
    assert weights.read_bytes() == before
    # Another adapter, and the same one of another model, are other runs.
    other = recipe(tmp_path, models, ingredients=asked, base=models["two"])
    assert soup.open_run(other).folder.url != done.url


def test_an_adapter_that_names_another_model_is_refused(
    tmp_path: Path, models: dict[str, str]
) -> None:
    module, shape = matrix_of(open_ingredient(models["base"]))
    low_rank(tmp_path / "lora", 1, shape, module, base=models["two"])
    asked = {"lora": str(tmp_path / "lora"), "one": models["one"]}
    with pytest.raises(CheckpointError, match=r"ingredients.lora: .* was trained on .*two"):
        soup.run(recipe(tmp_path, models, ingredients=asked, base=models["base"]))
    assert soup.run(recipe(tmp_path, models, ingredients=asked, base=models["two"])).url


def test_labels_with_dots_are_compared_by_repair(tmp_path: Path, models: dict[str, str]) -> None:
    ingredients = {"lr=0.1,seed=1": models["one"], "lr=0.2": models["two"]}
    done = soup.run(recipe(tmp_path, models, ingredients=ingredients))
    assert list(_changed_inputs(done)) == []
    shutil.rmtree(models["one"])
    checkpoint(Path(models["one"]), state(7, torch.bfloat16))
    assert list(_changed_inputs(done)) == ["ingredients.lr=0.1,seed=1 has changed"]
