"""Recaptioning without Ray: what a stage stores, who reads it, and what is left of the old text."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.support.jobs import do_unit, job_of
from tests.support.samples import with_image

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import ImageFile, Sample, Turn, caption_turns
from consomme.curate.caption.guards import Guards
from consomme.curate.caption.prompts import OwnPrompt
from consomme.datasets import scenes
from consomme.engines.generation.models import EngineModel
from consomme.execution.planning import plan_shards
from consomme.execution.runs import Run
from consomme.execution.worker import UnitWorker
from consomme.pipelines.recaption.metrics import check_canaries, metrics_of, most_common, texts_of
from consomme.pipelines.recaption.recipe import RecaptionRecipe
from consomme.pipelines.recaption.stage import CaptionStage
from consomme.storage.captions import (
    CAPTION_BEFORE,
    CAPTIONS,
    RecaptionReader,
    check_units,
    recaptioned_units,
    unit_reader,
)
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_content_hash, model_folder
from consomme.storage.shards import find_shards
from consomme.storage.units import plan_units
from consomme.storage.writers import tar_bytes

NUM = 24


def pairs() -> list[Sample]:
    found = []
    for seed in range(NUM):
        scene = scenes.make_scene(600_000 + seed)
        found.append(
            Sample(
                sample_id=f"s{seed:03d}",
                images=(
                    ImageFile(data=scenes.encode(scenes.render(scene)), name=f"s{seed:03d}.png"),
                ),
                turns=caption_turns(f"web text {seed}"),
                source="data",
                meta={"scene_seed": 600_000 + seed, "style": "filled"},
            )
        )
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "a.tar").write_bytes(tar_bytes(pairs()))
    return str(folder)


@pytest.fixture(scope="module")
def nano() -> str:
    return model_folder("package://models/nano")


def recipe(root: Path, shards: str, **changes: Any) -> RecaptionRecipe:
    options: dict[str, Any] = {
        "name": "r",
        "root": str(root),
        "model": "package://models/nano",
        "inputs": (shards,),
        "engine": {"name": "transformers"},
        "unit_rows": 10,
        "max_tokens": 48,
        "canary_fraction": 0.5,
        "truth": {"name": "scenes"},
    }
    return RecaptionRecipe(**{**options, **changes})


def recaptioned(recipe: RecaptionRecipe, model: str) -> str:
    """Do a whole run in this process; return its folder."""
    opened = Run.open("recaption", recipe, None, runs={"captions": recipe.captions})
    opened.start()
    folder = opened.folder
    plan_shards_here(folder, recipe)
    number = folder.start_attempt()
    found = EngineModel(model=model, adapter=None, marks={"model": model_content_hash(model)})
    stage = partial(CaptionStage, recipe, found, folder=folder)
    job = job_of(stage, folder, CAPTIONS, read=unit_reader(recipe.captions))
    worker = UnitWorker(job, number)
    for unit in plan_units(recipe.inputs, "data", recipe.unit_rows):
        do_unit(worker, unit)
    folder.close(number)
    done = opened.finish(counts=folder.total_counts(), outputs={CAPTIONS: "data"})
    return done.url


def plan_shards_here(folder: RunFolder, recipe: RecaptionRecipe) -> None:
    from consomme.base.telemetry import configure_logging

    configure_logging()
    plan_shards(folder, find_shards(recipe.inputs), recipe.unit_rows)


def rows_of(url: str) -> dict[str, dict[str, Any]]:
    run = RunFolder.at(url)
    tables = [pq.read_table(f"{run.path}/{r.path_of(CAPTIONS)}") for r in run.iter_commits()]
    return {row["sample_id"]: row for table in tables for row in table.to_pylist()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, shards: str, nano: str) -> str:
    return recaptioned(recipe(tmp_path_factory.mktemp("first"), shards), nano)


def read(url: str, shards: str, unit_rows: int = 10, **options: Any) -> list[Sample]:
    look = RecaptionReader(run=url, **options)
    return [s for unit in plan_units([shards], "data", unit_rows) for _, s in look(unit)[0]]


def test_every_text_says_where_it_comes_from(first: str, nano: str) -> None:
    check = json.loads(RunFolder.at(first).store.read("selfcheck.json"))
    assert (check["kind"], check["way"]) == ("writing", "padded batches")
    rows = rows_of(first)
    assert len(rows) == NUM
    for name, row in rows.items():
        scene = scenes.make_scene(600_000 + int(name[1:]))
        assert row["parent_caption"] == f"web text {int(name[1:])}"
        assert row["caption"] == row["written"]
        assert row["turns"] == [{"role": "assistant", "content": row["caption"]}]
        assert scene.objects[0].color in row["caption"]
        assert row["guard"] is None
        assert row["is_new"]
        assert row["prompt_id"] == "plain"
        assert row["merge"] == "replace"
        assert row["engine"].startswith("transformers ")
        assert row["model_hash"] == model_content_hash(nano)
        assert row["num_tokens"] > 5


def test_readers_get_the_new_text_and_keep_the_old_one_beside(first: str, shards: str) -> None:
    rows = rows_of(first)
    for before, after in zip(pairs(), read(first, shards), strict=True):
        assert after.images[0].data == before.images[0].data
        assert after.caption == rows[before.sample_id]["caption"]
        assert after.meta[CAPTION_BEFORE] == before.caption


def test_a_canary_that_sees_says_something_else(first: str) -> None:
    looked = [row for row in rows_of(first).values() if row["canary_blank"] is not None]
    assert 4 <= len(looked) <= 20
    sums = RunFolder.at(first).total_sums()
    assert sums["canary_blank"] == len(looked)
    assert sums["canary_blank_same"] == 0
    assert sums["canary_swap_same"] <= 1
    check_canaries(first, 0.8, sums)


def broken_copy(folder: Path, name: str, old: str, new: str) -> str:
    """Copy the shipped VLM and break something in one of its files."""
    shutil.copytree(model_folder("package://models/nano"), folder)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    return str(folder)


def test_a_model_that_does_not_see_is_caught(shards: str, tmp_path: Path) -> None:
    """The very model, its processor broken: it writes well, of one and the same picture."""
    blind = broken_copy(
        tmp_path / "blind",
        "processor_config.json",
        '"rescale_factor": 0.00392156862745098',
        '"rescale_factor": 0.0',
    )
    url = recaptioned(recipe(tmp_path, shards, canary_fraction=1.0), blind)
    sums = RunFolder.at(url).total_sums()
    assert sums["canary_blank_same"] == sums["canary_blank"] == NUM
    assert sums["canary_swap_same"] == sums["canary_swap"] == NUM
    with pytest.raises(DataError, match="do not depend on the pictures") as raised:
        check_canaries(url, 0.8, sums)
    assert url in str(raised.value)


def test_a_template_that_drops_the_picture_is_refused(shards: str, tmp_path: Path) -> None:
    broken = broken_copy(tmp_path / "broken", "chat_template.jinja", "'image'", "'picture'")
    with pytest.raises(CheckpointError, match="the chat template drops the image"):
        recaptioned(recipe(tmp_path, shards), broken)


def test_passes_build_on_each_other(first: str, shards: str, tmp_path: Path, nano: str) -> None:
    """A second pass appends an answer to the first one's caption; a third fuses old and new."""
    second = recaptioned(
        recipe(
            tmp_path,
            shards,
            name="more",
            captions=first,
            merge={"name": "append_turns"},
            # The same question again: it says the same, and that is all right here.
            guards=Guards(copy_similarity=None),
            fraction=0.5,
            canary_fraction=0.0,
        ),
        nano,
    )
    rows, before = rows_of(second), rows_of(first)
    new = [name for name, row in rows.items() if row["is_new"]]
    assert NUM * 0.2 < len(new) < NUM * 0.8
    for sample in read(second, shards):
        roles = [turn.role for turn in sample.turns]
        said = before[sample.sample_id]["caption"]
        if sample.sample_id in new:
            assert roles == ["user", "assistant", "user", "assistant"]
            assert sample.turns[1].content == said
        else:
            assert sample.turns == (Turn(role="assistant", content=said),)
    only = read(second, shards, only_new=True)
    assert sorted(sample.sample_id for sample in only) == sorted(new)


def test_guarded_texts_leave_the_sample_as_it_was(shards: str, tmp_path: Path, nano: str) -> None:
    asked = recipe(tmp_path, shards, max_tokens=3, canary_fraction=0.0)
    url = recaptioned(asked, nano)
    rows = rows_of(url)
    assert {row["guard"] for row in rows.values()} == {"model_output_truncated"}
    assert not any(row["is_new"] for row in rows.values())
    assert [s.caption for s in read(url, shards)] == [s.caption for s in pairs()]
    assert read(url, shards, only_new=True) == []
    assert RunFolder.at(url).total_counts()["guard/model_output_truncated"] == NUM


def test_what_cannot_be_asked_costs_one_reject(tmp_path: Path, nano: str) -> None:
    """Fusing asks with both captions, so a caption can make the question too long."""
    samples = pairs()[:8]
    samples[1] = replace(samples[1], turns=caption_turns("a very long text " * 400))
    samples[3] = replace(samples[3], turns=caption_turns("a text with <image> in it"))
    samples[5] = with_image(samples[5], samples[5].images[0].data[:80])
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_bytes(samples))
    plain = recaptioned(recipe(tmp_path, str(folder), canary_fraction=0.0), nano)
    assert [r.reason for r in RunFolder.at(plain).rejects()] == ["image_truncated"]
    fused = recaptioned(
        recipe(
            tmp_path,
            str(folder),
            name="fused",
            captions=plain,
            prompts=("fuse",),
            shows_picture=False,
            max_tokens=8,
            guards=Guards(truncated=False, max_repeat_fraction=None, max_run=None),
        ),
        nano,
    )
    reasons = {r.sample_id: r.reason for r in RunFolder.at(fused).rejects()}
    assert reasons == {
        "s001": "sequence_too_long",
        "s003": "text_not_encodable",
        "s005": "image_truncated",
    }
    rows = rows_of(fused)
    assert set(rows) == {"s000", "s002", "s004", "s006", "s007"}
    assert {row["prompt_id"] for row in rows.values()} == {"fuse"}
    assert all(row["canary_blank"] is None for row in rows.values())


def test_captions_are_joined_by_unit_or_refused(first: str, shards: str, tmp_path: Path) -> None:
    units = plan_units([shards], "data", 10)
    check_units(first, [unit.unit_id for unit in units])
    others = plan_units([shards], "data", 7)
    with pytest.raises(DataError, match="give the same inputs, source, unit_rows and reading"):
        check_units(first, [unit.unit_id for unit in others])
    assert recaptioned_units(first, sorted({unit.shard for unit in units})) == units
    with pytest.raises(DataError, match="or other shards"):
        recaptioned_units(first, ["elsewhere.tar"])
    changed = tmp_path / "changed"
    changed.mkdir()
    swapped = [replace(sample, sample_id=f"x{sample.sample_id}") for sample in pairs()]
    (changed / "a.tar").write_bytes(tar_bytes(swapped))
    moved = replace(units[0], shard=str(changed / "a.tar"))
    with pytest.raises(DataError, match="recaption it again"):
        RecaptionReader(run=first)(moved)
    with pytest.raises(DataError, match="no run is there"):
        unit_reader(str(tmp_path / "nowhere"))


def test_an_attempt_that_died_before_its_commit_is_not_read(first: str, shards: str) -> None:
    run = RunFolder.at(first)
    unit = plan_units([shards], "data", 10)[0]
    record = next(r for r in run.iter_commits() if r.unit_id == unit.unit_id)
    stray = Path(run.path) / f"data/{unit.unit_id}-00000000.parquet"
    stray.write_bytes(b"half a file")
    try:
        samples = dict(RecaptionReader(run=first)(unit)[0])
    finally:
        stray.unlink()
    stored = pq.read_table(f"{run.path}/{record.path_of(CAPTIONS)}").to_pylist()
    assert [samples[row["row"]].caption for row in stored] == [row["caption"] for row in stored]


def test_metrics_say_how_long_and_how_alike_captions_are(first: str) -> None:
    folder = RunFolder.at(first)
    counted = texts_of(first)
    common = most_common(counted)
    found = metrics_of(folder.total_counts(), folder.total_sums(), counted)
    words = [len(row["caption"].split()) for row in rows_of(first).values()]
    assert found["recaption/words_per_caption"] == pytest.approx(sum(words) / NUM)
    assert found["recaption/words_before"] == 3
    assert found["recaption/after_true_claims"] > 4
    assert found["recaption/before_true_claims"] == 0
    texts: Sequence[str] = [row["written"] for row in rows_of(first).values()]
    assert all(texts.count(text) / NUM == share for text, share in common)
    assert json.dumps(common)


def test_metadata_of_others_that_looks_like_that_of_scenes_means_nothing(
    tmp_path: Path, nano: str
) -> None:
    foreign = [replace(sample, meta={"scene_seed": "a night scene"}) for sample in pairs()[:2]]
    (tmp_path / "a.tar").write_bytes(tar_bytes(foreign))
    url = recaptioned(recipe(tmp_path, str(tmp_path / "a.tar"), truth={"name": "none"}), nano)
    assert RunFolder.at(url).total_counts()["samples"] == 2
    assert not [name for name in RunFolder.at(url).total_sums() if name.startswith("before_")]


def test_a_prompt_of_the_recipe_is_asked_and_named_by_its_content(
    shards: str, tmp_path: Path, nano: str
) -> None:
    own = OwnPrompt(text="describe the image. It came with: {original}")
    rows = rows_of(recaptioned(recipe(tmp_path, shards, prompts=("plain", own)), nano))
    assert {row["prompt_id"] for row in rows.values()} == {"plain", own.prompt.prompt_id}
    hashes = {row["prompt_id"]: row["prompt_hash"] for row in rows.values()}
    assert hashes[own.prompt.prompt_id] == own.prompt.text_hash
    assert own.prompt.prompt_id == f"text_{own.prompt.text_hash}"


def test_answers_about_places_can_be_checked_for_boxes(
    shards: str, tmp_path: Path, nano: str
) -> None:
    own = OwnPrompt(text="describe the image.", has_boxes=True)
    options = {"prompts": (own,), "guards": Guards(boxes=True)}
    rows = rows_of(recaptioned(recipe(tmp_path, shards, **options), nano))
    assert {row["guard"] for row in rows.values()} == {"model_output_boxes"}
