"""Runs that read models and data by name on the hub: what they pin, and what becomes of it."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.hub_server import HubServer, folder_files, hub_server

import consomme
from consomme.base.errors import ClusterError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import check_recipe
from consomme.evaluate.benchmark import portable_node
from consomme.evaluate.question_files import read_question_file
from consomme.execution.runs import PINS, Run, once
from consomme.ops.repair import _changed_inputs
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.score.run import open_run
from consomme.pipelines.train.plan import plan
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage import model_cache
from consomme.storage.pins import pins_kept

PACKAGE = Path(consomme.__file__).parent
NANO = folder_files(PACKAGE / "models" / "nano")
EMOJI = (PACKAGE / "datasets" / "data" / "emoji-noto.parquet").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(model_cache, "_in_use", {})
    monkeypatch.chdir(tmp_path)
    with hub_server() as server:
        for name, value in server.env(tmp_path, CONSOMME_STORAGE_PATIENCE_S="5").items():
            monkeypatch.setenv(name, value)
        server.model("org/nano").commit(NANO)
        server.dataset("org/emoji").commit({"data/noto.parquet": EMOJI})
        yield server
    for held in model_cache._in_use.values():
        held.close()


def recipe(**values: Any) -> ScoreRecipe:
    named = {"model": "org/nano", "inputs": ["hf://datasets/org/emoji/data"], **values}
    found: ScoreRecipe = check_recipe(ScoreRecipe, {"name": "named", "root": "runs", **named})
    return found


def finished(run: Run[Any]) -> Manifest:
    return run.finish(counts={"samples": 0})


def broken_off(run: Run[Any]) -> Manifest:
    raise ClusterError("the power failed")


def move(hub: HubServer) -> tuple[str, str]:
    """Commit something else to the model's branch; return the commits before and after."""
    repo = hub.model("org/nano")
    before = repo.refs["main"]
    return before, repo.commit({**NANO, "tokenizer_config.json": b"{}"})


def test_the_manifest_pins_the_commits_and_workers_get_them(hub: HubServer) -> None:
    model, data = (hub.repos[key].refs["main"] for key in hub.repos)
    resolved: list[Any] = []

    def body(run: Run[Any]) -> Manifest:
        resolved.append(run.resolved)
        return finished(run)

    manifest = once(open_run, recipe(), body)
    assert manifest.pins == {
        "hf://datasets/org/emoji@main": data,
        "hf://org/nano@main": model,
    }
    assert resolved[0].model == f"hf://org/nano@{model}"
    assert [one.url for one in resolved[0].shards] == [
        f"hf://datasets/org/emoji@{data}/data/noto.parquet"
    ]
    assert once(open_run, recipe(), finished).is_found
    # By its commit, it is the same run.
    assert once(open_run, recipe(model=f"org/nano@{model}"), finished).is_found


def test_a_branch_that_moved_is_another_input(hub: HubServer) -> None:
    first = once(open_run, recipe(), finished)
    move(hub)
    second = once(open_run, recipe(), finished)
    changed = {key for key, one in second.inputs.items() if first.inputs[key] != one}
    assert changed == {"model"}
    # What only describes the data changes nothing; another file does.
    repo = hub.dataset("org/emoji")
    repo.commit({"data/noto.parquet": EMOJI, "README.md": b"a card"})
    assert once(open_run, recipe(), finished).url == second.url
    repo.commit({"data/noto.parquet": EMOJI[:-1] + b"?"})
    assert once(open_run, recipe(), finished).url not in (first.url, second.url)


def test_a_run_that_was_begun_goes_on_with_its_commit(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ClusterError, match="the power failed"):
        once(open_run, recipe(), broken_off)
    before, after = move(hub)
    manifest = once(open_run, recipe(), finished)
    assert manifest.pins["hf://org/nano@main"] == before
    assert PINS in manifest.files
    assert re.search(rf"moved to {after}; this run began with {before} and goes on", caplog.text)
    # It is done; the next run reads what the branch is now.
    later = once(open_run, recipe(), finished)
    assert later.pins["hf://org/nano@main"] == after
    assert later.url != manifest.url


def test_a_branch_that_moves_while_a_run_reads_changes_nothing(hub: HubServer) -> None:
    before = hub.model("org/nano").refs["main"]

    def body(run: Run[Any]) -> Manifest:
        move(hub)
        return finished(run)

    assert once(open_run, recipe(), body).pins["hf://org/nano@main"] == before


def test_another_recipe_is_not_tied_to_a_run_that_was_begun(hub: HubServer) -> None:
    with pytest.raises(ClusterError, match="the power failed"):
        once(open_run, recipe(), broken_off)
    _, after = move(hub)
    manifest = once(open_run, recipe(prompt="what is it?"), finished)
    assert manifest.pins["hf://org/nano@main"] == after


def test_a_local_run_has_no_pins(tmp_path: Path) -> None:
    manifest = once(
        open_run,
        recipe(
            model="package://models/nano",
            inputs=["package://datasets/data/emoji-noto.parquet"],
            root=str(tmp_path),
        ),
        finished,
    )
    assert manifest.pins == {}
    assert PINS not in manifest.files


def test_images_that_lie_on_the_hub_are_pinned(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.dataset("org/emoji").refs["main"]
    (tmp_path / "a.jsonl").write_text('{"image": "data/x.png", "caption": "a cat"}\n')
    reading = {"image_root": "hf://datasets/org/emoji"}
    run = open_run(recipe(inputs=["a.jsonl"], reading=reading))
    at = f"hf://datasets/org/emoji@{commit}"
    assert run.recipe.reading.anywhere().image_root == at
    assert at in run.recipe.reading.for_units()


def test_globs_braces_and_files_of_a_data_set(hub: HubServer) -> None:
    hub.dataset("org/emoji").commit(
        {f"data/part-{k}.parquet": EMOJI for k in range(4)} | {"card.md": b"x"}
    )

    def names(*inputs: str) -> list[str]:
        run = open_run(recipe(inputs=list(inputs)))
        return [re.sub(r".*@\w{40}/", "", shard.url) for shard in run.resolved.shards]

    every = [f"data/part-{k}.parquet" for k in range(4)]
    assert names("hf://datasets/org/emoji") == every
    assert names("hf://datasets/org/emoji/data/*.parquet") == every
    assert names("hf://datasets/org/emoji@main/**/part-[12].parquet") == every[1:3]
    assert names("hf://datasets/org/emoji/data/part-{0..1}.parquet") == every[:2]
    assert names("hf://datasets/org/emoji/data/part-3.parquet") == every[3:]
    with pytest.raises(RecipeError, match=r"no such file or folder.*did you mean"):
        names("hf://datasets/org/emoji/dta")


def test_a_repair_looks_at_the_commit_that_the_run_read(hub: HubServer) -> None:
    manifest = once(open_run, recipe(), finished)
    move(hub)
    hub.dataset("org/emoji").commit({"data/noto.parquet": EMOJI[:-1] + b"?"})
    assert list(_changed_inputs(manifest)) == []


def test_a_benchmark_s_file_on_the_hub_is_pinned(hub: HubServer) -> None:
    rows = [{"question": "what is it?", "answer": "a cat"}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    commit = hub.dataset("org/questions").commit({"test.jsonl": data})
    file = "hf://datasets/org/questions/test.jsonl"
    with pins_kept():
        (row,) = read_question_file(file, None).rows
        hub.dataset("org/questions").commit({"test.jsonl": b"{}"})
        node = portable_node({"name": "open_answer", "file": file})
        assert node["file"] == f"hf://datasets/org/questions@{commit}/test.jsonl"
        assert read_question_file(file, None).rows == read_question_file(node["file"], None).rows
    assert "what is it?" in str(row)


def test_a_plan_brings_no_weights(hub: HubServer, tmp_path: Path) -> None:
    data = [{"inputs": ["hf://datasets/org/emoji/data"]}]
    values = {"name": "x", "root": str(tmp_path), "model": "org/nano", "data": data}
    planned = plan(check_recipe(TrainRecipe, {**values, "num_steps": 2}))
    assert planned.table["rows"]
    assert hub.times("org/nano/config.json") == 1
    assert not hub.times("org/nano/model.safetensors")
