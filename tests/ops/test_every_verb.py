"""Runs of every verb: what is damaged is named, and what is repaired is as before when run again.

The first part damages the runs that other tests use as well, and leaves them as they were. The
second makes a run of every verb, on a disk and in a bucket.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.every_verb import (
    DAMAGES,
    content_of,
    damaged,
    files_of,
    flip_a_bit,
    run_every_verb,
    run_verb,
)

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.ops.verify import verify, verify_run
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url

pytestmark = pytest.mark.ray

NANO = "package://models/nano"


def named(url: str | Path) -> list[str]:
    """What verify says is wrong, the run's own problems first."""
    try:
        found = verify(str(url))
    except DataError as error:
        return [str(error)]
    return [problem.text for one in found.everything for problem in one.problems]


def check_every_file(run: Path) -> None:
    """Damage each file of a run in every way, and add one."""
    assert named(run) == []
    for path, file in files_of(run).items():
        for name, damage in DAMAGES.items():
            if path == "progress.json" and name != "cut":
                continue  # The state of a run that is not done; only its form is known.
            if name == "cut" and not file.stat().st_size:
                continue
            with damaged(file, damage):
                assert any(path in text for text in named(run)), (run.parent.name, path, name)
    (run / "added.bin").write_bytes(b"x")
    assert any("added.bin" in text for text in named(run))
    (run / "added.bin").unlink()
    assert named(run) == []


def redone(run: Path, again: Callable[[], Manifest], *paths: str) -> None:
    """Damage files, repair the run, run its recipe again: it is as before."""
    before = content_of(run)
    for pattern in paths:
        for file in run.glob(pattern):
            file.write_bytes(flip_a_bit(file.read_bytes()))
    said = verify_run(str(run), repair=True, plan=True)
    assert "cannot be repaired" not in said
    verify_run(str(run), repair=True)
    assert not RunFolder.at(str(run)).is_done
    made = again()
    assert (made.url, made.is_found) == (str(run), False)
    assert named(run) == []
    after = content_of(run)
    assert after.keys() == before.keys()
    assert [path for path in before if before[path] != after[path]] == []


def test_a_view(scores, view) -> None:
    check_every_file(Path(view.url))
    recipe = {**view.recipe, "scores": scores.url}
    redone(Path(view.url), lambda: run_verb("filter", **recipe), "view.parquet")


@pytest.mark.long
def test_scores(score_recipe, scores) -> None:
    from consomme.pipelines.score import run as score

    check_every_file(Path(scores.url))
    damage = ("data/*000000025-*", "rejects/*", "selfcheck.json", "plan/shards.parquet")
    redone(Path(scores.url), lambda: score.run(score_recipe), *damage)


@pytest.mark.long
def test_an_evaluation(root) -> None:
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe

    benchmarks = ({"name": "scene_captions", "num": 6, "max_tokens": 8},)
    recipe = EvaluateRecipe(
        name="redone", root=root, models={"m": NANO}, benchmarks=benchmarks, unit_items=3
    )
    run = Path(evaluate.run(recipe).url)
    check_every_file(run)
    redone(
        run, lambda: evaluate.run(recipe), "data/*-000000003-*", "answers.parquet", "plan/plan.json"
    )
    # All answers are in the cache, and nothing is left that says which ones this run asked.
    redone(run, lambda: evaluate.run(recipe), "data/*", "commits/*.parquet", "plan/*", "attempts/*")


@pytest.mark.long
def test_a_training(sparse_recipe, sparse) -> None:
    from consomme.pipelines.train import run as train

    run = Path(sparse.url)
    check_every_file(run)
    redone(run, lambda: train.run(sparse_recipe), "model/*", "trainable.json")
    for lost in ("curve.json", "checkpoints/*/meta.json"):
        file = next(run.glob(lost))
        with damaged(file, flip_a_bit):
            with pytest.raises(DataError) as refused:
                verify_run(str(run), repair=True)
            assert f"rm -r {run} && consomme train again.yaml" in str(refused.value)
            assert RunFolder.at(str(run)).is_done, "its model is as it was"
    assert named(run) == []


@pytest.mark.long
def test_models_and_soups_in_a_bucket(s3_root, root, tmp_path, monkeypatch) -> None:
    """Workers are given URLs, and each node brings the models by itself."""
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe
    from consomme.pipelines.soup import run as soup
    from consomme.pipelines.soup.recipe import SoupRecipe

    store = open_store(s3_root)
    for name in ("one", "two"):
        for file in Path(model_folder(NANO)).iterdir():
            if file.is_file():
                store.write(f"{name}/{file.name}", file.read_bytes())
    models = {name: join_url(s3_root, name) for name in ("one", "two")}
    asked = {"name": "scene_questions", "style": "outline", "num": 2}
    recipe = SoupRecipe(name="mixed", root=s3_root, ingredients=models, benchmark=asked)
    monkeypatch.chdir(tmp_path)
    opened = soup.open_run(recipe)
    assert opened.resolved.models == list(models.values())
    done = soup.run(recipe)
    assert list(tmp_path.iterdir()) == [], "nothing is written to a folder called s3:"
    assert named(done.url) == []
    assert soup.run(recipe).is_found
    evaluated = EvaluateRecipe(
        name="e",
        root=s3_root,
        models={"mixed": f"{done.url}/greedy", "one": models["one"]},
        benchmarks=({"name": "scene_captions", "num": 2},),
    )
    run = evaluate.open_run(evaluated)
    assert [parent.url for parent in run.parents] == [done.url]
    models = {label: one.model for label, one in run.resolved.models.items()}
    assert models == evaluated.models, "no folder of this machine"
    made = run.once(evaluate._evaluate)
    assert named(made.url) == []
    store.write("two/model.safetensors", flip_a_bit(store.read("two/model.safetensors")))
    assert soup.open_run(recipe).fingerprint != opened.fingerprint, "another model of its size"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_run_of_every_verb(tmp_path, lent_ray) -> None:
    root = tmp_path / "runs"
    made = run_every_verb(str(root))
    for name, manifest in made.items():
        check_every_file(Path(manifest.url)) if manifest.verb != "loop" else None
        assert named(manifest.url) == [], name
    again = run_every_verb(str(root))
    assert all(manifest.is_found for manifest in again.values())
    before = {name: content_of(Path(manifest.url)) for name, manifest in made.items()}
    for name, manifest in made.items():
        # One after the other: a run whose parents are damaged waits for these.
        run = Path(manifest.url)
        for path, file in files_of(run).items():
            # A self-check is written by a worker that opens an engine, and known answers need none.
            kept = ("checkpoints/", "evaluations/", "curve", "gauges", "selfcheck/")
            is_made_again = not path.startswith(kept)
            if is_made_again and path not in ("progress.json", "manifest.json"):
                if not (manifest.verb == "train" and path.startswith("rejects/")):
                    file.write_bytes(flip_a_bit(file.read_bytes()))
        said = verify_run(str(run), repair=True)
        assert "cannot be repaired" not in said, said
        repaired = run_every_verb(str(root))
        assert {one for one, it in repaired.items() if not it.is_found} == {name}
        assert repaired[name].url == manifest.url
        assert named(manifest.url) == []
        assert content_of(run) == before[name], name
    assert all(manifest.is_found for manifest in run_every_verb(str(root)).values())


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_copy_of_every_run_is_found(tmp_path, lent_ray, s3_root) -> None:
    root = tmp_path / "runs"
    run_every_verb(str(root))
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    root.rename(tmp_path / "away")
    copied = run_every_verb(str(tmp_path / "copy"))
    assert all(manifest.is_found for manifest in copied.values())
    assert all(named(manifest.url) == [] for manifest in copied.values())
    store = open_store(s3_root)
    for path, file in files_of(tmp_path / "copy").items():
        store.write(path, file.read_bytes())
    (tmp_path / "copy").rename(tmp_path / "away too")
    uploaded = run_every_verb(s3_root)
    assert all(manifest.is_found for manifest in uploaded.values())
    assert all(named(manifest.url) == [] for manifest in uploaded.values())


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_verb_in_a_bucket(lent_ray, s3_root) -> None:
    made = run_every_verb(s3_root)
    for manifest in made.values():
        assert named(manifest.url) == []
    assert all(manifest.is_found for manifest in run_every_verb(s3_root).values())
    loop = made["loop"]
    store = open_store(loop.url)
    summary = json.loads(store.read("manifest.json"))
    assert summary["verb"] == "loop"
    (model,) = [p for p in loop.parents if p.verb == "train" and "loop-model" in p.url]
    weights = open_store(model.url)
    weights.write("model/model.safetensors", flip_a_bit(weights.read("model/model.safetensors")))
    assert any("model.safetensors" in text for text in named(loop.url))


def test_the_recipe_of_every_verb_is_told_by_what_it_reads(score_recipe, scores) -> None:
    """Where data and models are named from is no part of a run's identity."""
    from consomme.pipelines.score import run as score

    elsewhere = replace(score_recipe, model=model_folder(NANO))
    assert score.open_run(elsewhere).folder.url == scores.url
