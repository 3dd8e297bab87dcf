"""What a run reads is told apart by what it holds: changes are noticed, moves are not."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.cli import run_command
from consomme.execution.planning import plan_shards, plan_view
from consomme.execution.runs import CHANGED, Run, once
from consomme.ops.verify import verify
from consomme.pipelines.download import run as download
from consomme.pipelines.download.recipe import DownloadRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.recaption import run as recaption
from consomme.pipelines.recaption.recipe import RecaptionRecipe
from consomme.pipelines.score import run as score
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.train import run as train
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.storage.identity import find_data
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url
from consomme.storage.units import plan_units
from consomme.storage.view import View
from consomme.storage.writers import parquet_bytes, tar_bytes

NANO = "package://models/nano"
PICTURE = b"\x89PNG one picture of these many bytes"
OTHER = b"\x89PNG two picture of these many bytes"


def sample(caption: str) -> Sample:
    turns = caption_turns(caption)
    return Sample(
        sample_id="a", images=(ImageFile(data=PICTURE, name="a.png"),), turns=turns, source="data"
    )


def as_parquet(**columns: list[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="none")
    return sink.getvalue().to_pybytes()


def with_paths(caption: str) -> bytes:
    return as_parquet(image=["pictures/a.png"], caption=[caption])


RECORD = '{"id": "a", "image": "pictures/a.png", "caption": "a %s dog"}'

FORMATS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "tar": ("s.tar", lambda word: tar_bytes([sample(f"a {word} dog")])),
    "parquet": ("s.parquet", lambda word: parquet_bytes([sample(f"a {word} dog")])),
    "parquet with paths": ("s.parquet", lambda word: with_paths(f"a {word} dog")),
    "jsonl": ("s.jsonl", lambda word: (RECORD % word).encode() + b"\n"),
    "json": ("s.json", lambda word: f"[{RECORD % word}]".encode()),
    "URL list": (
        "s.parquet",
        lambda word: as_parquet(url=["http://x/a.png"], caption=[f"a {word} dog"]),
    ),
}
WITH_PICTURES = ("parquet with paths", "jsonl", "json")


@pytest.fixture(params=["local", "seaweedfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder for data, which the root of the runs lies in."""
    if request.param == "local":
        return str(tmp_path / "data")
    return str(request.getfixturevalue("s3_root"))


def opened(kind: str, place: str) -> Run[object]:
    """The run that a recipe on the data of one format resolves to."""
    root, inputs = join_url(place, "runs"), (join_url(place, FORMATS[kind][0]),)
    if kind == "URL list":
        return download.open_run(DownloadRecipe(name="x", root=root, inputs=inputs))
    return score.open_run(ScoreRecipe(name="x", root=root, inputs=inputs, model=NANO))


@pytest.mark.parametrize("kind", FORMATS)
def test_other_bytes_of_the_same_size_are_another_run(kind: str, place: str) -> None:
    name, make = FORMATS[kind]
    store = open_store(place)
    red, big = make("red"), make("big")
    assert len(red) == len(big)
    store.write(name, red)
    store.write("pictures/a.png", PICTURE)
    before = opened(kind, place).fingerprint
    assert opened(kind, place).fingerprint == before, "nothing changed"
    store.write("runs/score/x-12345678/pictures/b.png", b"a run beside the data is not the data")
    store.write("notes.md", b"nor is a note")
    assert opened(kind, place).fingerprint == before
    store.write(name, big)
    after = opened(kind, place).fingerprint
    assert after != before
    store.write("pictures/a.png", OTHER)
    changed = opened(kind, place).fingerprint
    assert (changed != after) == (kind in WITH_PICTURES)
    store.write("pictures/b.png", OTHER)
    assert (opened(kind, place).fingerprint != changed) == (kind in WITH_PICTURES)


def test_the_same_bytes_written_again(tmp_path: Path, s3_root: str) -> None:
    """An ETag is about the bytes; a file system knows only when they were written."""
    make = FORMATS["tar"][1]
    for place, is_same in ((str(tmp_path / "data"), False), (s3_root, True)):
        open_store(place).write("s.tar", make("red"))
        before = opened("tar", place).fingerprint
        open_store(place).write("s.tar", make("red"))
        assert (opened("tar", place).fingerprint == before) == is_same


def test_times_of_local_files(tmp_path: Path) -> None:
    make = FORMATS["tar"][1]
    path = tmp_path / "s.tar"
    path.write_bytes(make("red"))
    seen = {opened("tar", str(tmp_path)).fingerprint}
    # Written again as soon as it was looked at: never within the same tick of the clock.
    for word in ("big", "sad", "old", "wet", "hot", "shy"):
        path.write_bytes(make(word))
        mark = opened("tar", str(tmp_path)).fingerprint
        assert mark not in seen
        seen.add(mark)
    # An older file, copied with its time.
    older = tmp_path / "older"
    older.write_bytes(make("new"))
    os.utime(older, (1e9, 1e9))
    shutil.copy2(older, path)
    copied = opened("tar", str(tmp_path)).fingerprint
    assert copied not in seen
    # A file system that keeps whole seconds only.
    path.write_bytes(make("dry"))
    second = int(time.time())
    os.utime(path, (second, second))
    began = time.monotonic()
    opened("tar", str(tmp_path))
    assert time.time() >= second + 2 or time.monotonic() - began > 1
    # Links, modes and owners are no content.
    mark = opened("tar", str(tmp_path)).fingerprint
    path.chmod(0o600)
    os.link(path, tmp_path / "other name")
    assert opened("tar", str(tmp_path)).fingerprint == mark


def pairs(root: Path) -> Manifest:
    source = {"name": "scenes", "num": 4}
    return prepare.run(PrepareRecipe(name="p", root=str(root), source=source, rows_per_shard=2))


def scored(root: str, data: str) -> Run[object]:
    return score.open_run(ScoreRecipe(name="s", root=root, inputs=(f"{data}/data",), model=NANO))


def test_a_run_is_the_same_in_a_copy_and_in_a_bucket(tmp_path: Path, s3_root: str) -> None:
    made = pairs(tmp_path / "runs")
    before = scored(str(tmp_path / "runs"), made.url)
    shutil.copytree(tmp_path / "runs", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "runs")
    copy = made.url.replace("/runs/", "/copy/")
    assert scored(str(tmp_path / "copy"), copy).fingerprint == before.fingerprint
    store = open_store(s3_root)
    for path in sorted((tmp_path / "copy").rglob("*"), reverse=True):
        if path.is_file():
            store.write(str(path.relative_to(tmp_path / "copy")), path.read_bytes())
    uploaded = copy.replace(str(tmp_path / "copy"), s3_root)
    assert scored(s3_root, uploaded).fingerprint == before.fingerprint
    assert pairs(tmp_path / "copy").is_found
    assert verify(uploaded).problems == ()


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_run_that_was_changed_is_not_read(tmp_path: Path, *, keeps_time: bool) -> None:
    made = pairs(tmp_path)
    path = Path(made.url) / "data" / "shard-000001.tar"
    status = path.stat()
    path.touch()
    before = scored(str(tmp_path), made.url).fingerprint
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    if keeps_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"shard-000001.tar is not what this prepare run wrote"):
        scored(str(tmp_path), made.url)
    data[700] ^= 1
    path.write_bytes(data)
    assert scored(str(tmp_path), made.url).fingerprint == before


def hand_scored(root: Path, inputs: str) -> tuple[RunFolder, RunFolder]:
    """A score run, and a filter run with a view of it."""
    scores = RunFolder.open(str(root), "score", "s", "00000001")
    plan_shards(scores, find_data([inputs]), 1024)
    scores.close(scores.start_attempt())
    recipe = {"inputs": [inputs], "root": str(root)}
    made = Manifest(verb="score", name="s", fingerprint="00000001", recipe=recipe)
    scores.finish(made, "")
    view = RunFolder.open(str(root), "filter", "f", "00000002")
    units = plan_units([inputs], "data")
    View.from_rows(units, {unit.unit_id: range(unit.count) for unit in units}).save(view)
    from consomme.execution.runs import parents_of

    parents = parents_of([scores.manifest()])
    kept = replace(made, verb="filter", fingerprint="00000002", parents=parents)
    view.finish(replace(kept, outputs={"view": "view.parquet"}), "")
    return scores, view


@pytest.mark.parametrize("kind", ["tar", "jsonl"])
def test_data_behind_a_view_that_changed_are_not_read(kind: str, tmp_path: Path) -> None:
    name, make = FORMATS[kind]
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    (data / name).write_bytes(make("red"))
    (data / "pictures" / "a.png").write_bytes(PICTURE)
    _, view = hand_scored(tmp_path / "runs", str(data / name))
    root = str(tmp_path / "runs")
    source = (TrainSource(view=view.url),)
    openers = [
        lambda: train.open_run(TrainRecipe(name="t", root=root, model=NANO, data=source)),
        lambda: recaption.open_run(
            RecaptionRecipe(
                name="r", root=root, model=NANO, view=view.url, engine={"name": "transformers"}
            )
        ),
    ]
    assert [len(run().fingerprint) for run in openers] == [8, 8]
    if kind == "jsonl":
        (data / "pictures" / "a.png").write_bytes(OTHER)
        message = "pictures beside the shards have changed"
    else:
        (data / name).write_bytes(make("big"))
        message = f"{name} has changed since .*score/s-00000001 read it"
    for run in openers:
        with pytest.raises(DataError, match=message):
            run()
    (data / name).unlink()
    with pytest.raises(DataError, match=f"{name} is gone"):
        openers[0]()


def test_of_a_run_that_is_done_the_data_may_be_gone(tmp_path: Path) -> None:
    name, make = FORMATS["tar"]
    path = tmp_path / name
    path.write_bytes(make("red"))
    _, view = hand_scored(tmp_path / "runs", str(path))
    source = (TrainSource(view=view.url),)
    recipe = TrainRecipe(name="t", root=str(tmp_path / "runs"), model=NANO, data=source)
    done = once(train.open_run, recipe, lambda run: run.finish())
    path.rename(tmp_path / "away.tar")
    assert train.open_run(recipe).once(lambda run: run.finish()).is_found
    path.write_bytes(make("big"))
    with pytest.raises(DataError, match=f"{name} has changed"):
        train.open_run(recipe)
    assert RunFolder.at(done.url).is_done


def test_a_view_of_runs_that_were_moved_is_read_where_they_are(tmp_path: Path) -> None:
    made = pairs(tmp_path / "runs")
    _, view = hand_scored(tmp_path / "runs", f"{made.url}/data")
    manifest = json.loads(Path(view.url, "manifest.json").read_text())
    assert manifest["parents"][0]["url"].startswith(str(tmp_path / "runs"))
    # The score run names the one that it reads as its parent, as every verb does.
    scores = RunFolder.at(manifest["parents"][0]["url"])
    from consomme.execution.runs import parents_of

    first = replace(scores.manifest(), parents=parents_of([made]))
    scores.finish(first, "")
    view.finish(replace(view.manifest(), parents=parents_of([scores.manifest()])), "")
    (tmp_path / "runs").rename(tmp_path / "moved")
    now = view.url.replace("/runs/", "/moved/")
    shards = {unit.shard for unit, _ in View.iter_entries(now)}
    assert shards == {str(p) for p in (tmp_path / "moved").rglob("*.tar")}
    root = str(tmp_path / "moved")
    source = (TrainSource(view=now),)
    train.open_run(TrainRecipe(name="t", root=root, model=NANO, data=source))
    assert verify(now).problems == ()
    plan = plan_view(RunFolder.open(root, "train", "t", "00000003"), View.load(now))
    assert plan.num_rows == 4


def test_data_that_change_while_they_are_read_end_the_run(tmp_path: Path) -> None:
    make = FORMATS["tar"][1]
    path = tmp_path / "s.tar"
    path.write_bytes(make("red"))
    recipe = ScoreRecipe(name="x", root=str(tmp_path / "runs"), inputs=(str(path),), model=NANO)

    def body(run: Run[object]) -> Manifest:
        path.write_bytes(make("big"))
        return run.finish()

    with pytest.raises(DataError, match="data changed while this run was reading it"):
        once(score.open_run, recipe, body)
    (torn,) = (tmp_path / "runs" / "score").iterdir()
    assert not RunFolder.at(str(torn)).is_done
    assert (torn / CHANGED).exists()
    whole = once(score.open_run, recipe, lambda run: run.finish())
    assert whole.url != str(torn)
    # The data of before are back, and with them the torn run's fingerprint.
    torn_run = replace(score.open_run(recipe), folder=RunFolder.at(str(torn)))
    with pytest.raises(DataError, match="may be of both"):
        torn_run.start()


def test_pictures_that_change_while_they_are_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be no pictures of the run: a folder of pictures grows while others read it."""
    name, make = FORMATS["jsonl"]
    (tmp_path / "pictures").mkdir()
    (tmp_path / name).write_bytes(make("red"))
    picture = tmp_path / "pictures" / "a.png"
    picture.write_bytes(PICTURE)
    root, inputs = str(tmp_path / "runs"), (str(tmp_path / name),)
    recipe = ScoreRecipe(name="x", root=root, inputs=inputs, model=NANO)

    def body(run: Run[object]) -> Manifest:
        picture.write_bytes(OTHER)
        return run.finish()

    with caplog.at_level("WARNING", logger="consomme"):
        made = once(score.open_run, recipe, body)
    assert "data.pictures: files beside the shards were added, changed or removed" in caplog.text
    assert made.decisions["changed_meanwhile"] == ["data.pictures"]
    assert score.open_run(recipe).folder.url != made.url


def test_a_run_that_is_done_says_since_when(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "p.yaml"
    recipe.write_text(f"name: p\nroot: {tmp_path}/runs\nsource: {{name: scenes, num: 2}}\n")
    assert run_command(["prepare", str(recipe)]) == 0
    assert "prepare p: done in" in capsys.readouterr().out
    assert run_command(["prepare", str(recipe)]) == 0
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert f"prepare p: already done on {today}" in (out := capsys.readouterr().out)
    assert "nothing ran" in out


def test_a_new_run_says_what_changed_since_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = FORMATS["tar"][1]
    path = tmp_path / "s.tar"
    recipe = ScoreRecipe(name="x", root=str(tmp_path / "runs"), inputs=(str(path),), model=NANO)
    for word in ("red", "big"):
        path.write_bytes(make(word))
        with caplog.at_level("INFO", logger="consomme"):
            once(score.open_run, recipe, lambda run: run.finish())
    assert "has the same recipe, but data changed since" in caplog.text


def test_columns_of_a_run_that_were_changed_are_not_read(tmp_path: Path) -> None:
    """A sidecar is not read whole, so its checksum is not compared; those of its pages are."""
    from consomme.storage.sidecar import read_columns, table_bytes
    from consomme.storage.unit import Unit

    run = RunFolder.open(str(tmp_path), "score", "s", "00000001")
    unit = Unit(unit_id="u", source="data", shard="s.tar", start=0, count=99, num_bytes=9)
    columns = {"row": list(range(99)), "sample_id": [f"{n}" for n in range(99)]}
    table = pa.table({**columns, "perplexity": pa.array([n / 7 for n in range(99)], pa.float32())})
    number = run.start_attempt()
    file = run.write_output(unit, "scores", table_bytes(table), "parquet")
    run.commit(number, unit, [file], {"samples": 99})
    run.close(number)
    assert read_columns(run.url, ["perplexity"]).num_rows == 99
    path = Path(run.url) / file.path
    group = pq.ParquetFile(path).metadata.row_group(0)
    (place,) = [
        (column.dictionary_page_offset or column.data_page_offset)
        + column.total_compressed_size // 2
        for column in (group.column(k) for k in range(group.num_columns))
        if column.path_in_schema == "perplexity"
    ]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        read_columns(run.url, ["perplexity"])


PLACES = {
    *("inputs", "sources", "view", "captions", "scores", "hashes", "columns_from", "views"),
    *("model", "models", "ingredients", "train", "tuned", "adapter"),
}


def test_every_key_that_names_a_place_is_no_part_of_a_fingerprint() -> None:
    import dataclasses

    from consomme.base.schema import is_located
    from consomme.curate.tag.registry import TAGGERS
    from consomme.engines.generation.registry import GENERATION_ENGINES
    from consomme.pipelines.train.recipe import Evaluation
    from consomme.pipelines.verbs import VERBS, recipe_class
    from consomme.train.layers import LAYER_SELECTORS

    verbs = [name for name, verb in VERBS.items() if verb.recipe]
    schemas = [*map(recipe_class, verbs), TrainSource, Evaluation]
    for registry in (TAGGERS, GENERATION_ENGINES, LAYER_SELECTORS):
        schemas += [registry.get(name) for name in registry.names()]
    fields = [(cls.__name__, one) for cls in schemas for one in dataclasses.fields(cls)]
    named = [(cls, one.name) for cls, one in fields if one.name in PLACES and not is_located(one)]
    assert named == []
    assert {one.name for _, one in fields} >= PLACES
