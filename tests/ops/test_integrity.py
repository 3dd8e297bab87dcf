"""Every damaged, missing or foreign file of a run is named; a repair does what it says it does."""

import json
import shutil
from pathlib import Path

import pytest
from tests.support.every_verb import DAMAGES, content_of, damaged, files_of, flip_a_bit
from tests.support.small_ledger import UNITS, small_run

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.base.sealed import is_sealed, sealed
from consomme.cli import run_command
from consomme.execution.runs import Run, once
from consomme.ops.verify import VerifyReport, verify, verify_run
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.report import run as report
from consomme.pipelines.score import run as score
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.open import open_store

NEWER = ("files", "ledger", "finished", "checksum")
"""Keys of a manifest that earlier versions did not write."""


def prepared(root: str | Path) -> Manifest:
    source = {"name": "scenes", "num": 4}
    return prepare.run(PrepareRecipe(name="p", root=str(root), source=source, rows_per_shard=2))


def make(kind: str, root: Path) -> Path:
    """Make a run, or find it."""
    return Path(prepared(root).url if kind == "prepare" else small_run(root).url)


def named(url: str | Path) -> list[str]:
    """What verify says is wrong."""
    try:
        found: VerifyReport = verify(str(url))
    except DataError as error:
        return [str(error)]
    return [problem.text for one in found.everything for problem in one.problems]


@pytest.fixture(scope="module", params=["prepare", "ledger"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound run; tests put back what they damage."""
    run = make(request.param, tmp_path_factory.mktemp("runs"))
    if request.param == "prepare":
        report.run_folder(str(run))
    return run


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_that_is_not_as_it_was_is_named(sound: Path, damage: str) -> None:
    assert named(sound) == []
    for path, file in files_of(sound).items():
        if (damage, path) == ("removed", "report.html"):
            continue  # It can be drawn at any time, and no output of these runs.
        if path == "progress.json" and damage != "cut":
            continue  # The state of a run that is not done; only its form is known.
        with damaged(file, DAMAGES[damage]):
            assert any(path in text for text in named(sound)), path
    assert named(sound) == []


@pytest.mark.parametrize("path", ["notes.txt", "data/x.parquet", "plan/more.parquet", "a/b/c"])
def test_every_file_that_the_run_did_not_write_is_named(sound: Path, path: str) -> None:
    file = sound / path
    was_there = file.parent.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    assert any(path in text for text in named(sound))
    file.unlink()
    if not was_there:
        shutil.rmtree(sound / path.split("/")[0])
    assert named(sound) == []


@pytest.mark.long
def test_the_same_in_a_bucket(s3_root: str) -> None:
    url = prepared(s3_root).url
    store = open_store(url)
    assert named(url) == []
    for file in [file for file in store.list() if file.path != "progress.json"]:
        data = store.read(file.path)
        for damage in DAMAGES.values():
            changed = damage(data)
            if changed is None:
                store.delete(file.path)
            else:
                store.write(file.path, changed)
            assert any(file.path in text for text in named(url)), file.path
        store.write(file.path, data)
    store.write("data/notes.txt", b"x")
    assert any("data/notes.txt" in text for text in named(url))
    assert "delete data/notes.txt" in verify_run(url, repair=True)
    assert named(url) == []
    assert prepared(s3_root).is_found


KINDS = [
    *(("prepare", path) for path in ("data/shard-000001.tar", "recipe.yaml", "manifest.json")),
    *(("ledger", path) for path in ("recipe.yaml", "manifest.json", "selfcheck.json")),
    *(("ledger", path) for path in ("plan/plan.json", "plan/part-000000.parquet")),
    *(("ledger", path) for path in ("attempts/000001.json", "attempts/000002.json")),
    *(("ledger", path) for path in ("commits/*.parquet", "data/*001-*", "rejects/*001-*")),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "path"), KINDS)
def test_repaired_and_run_again_it_holds_the_same_bytes(
    tmp_path: Path, kind: str, path: str, damage: str
) -> None:
    run = make(kind, tmp_path)
    before = content_of(run)
    if (path, damage) == ("manifest.json", "removed"):
        (run / path).unlink()  # Not finished any more; running it again finishes it.
    else:
        (file,) = run.glob(path)
        changed = DAMAGES[damage](file.read_bytes())
        file.unlink() if changed is None else file.write_bytes(changed)
        torn = {name: one.read_bytes() for name, one in files_of(run).items()}
        said = verify_run(str(run), repair=True, plan=True)
        assert {name: one.read_bytes() for name, one in files_of(run).items()} == torn
        done = verify_run(str(run), repair=True)
        assert done.partition("Repair:")[2] == said.partition("What repair=true would do:")[2]
        assert not RunFolder.at(str(run)).is_done
    assert make(kind, tmp_path) == run
    assert named(run) == []
    assert content_of(run) == before


def test_a_healthy_run_is_left_alone(sound: Path) -> None:
    before = {path: file.read_bytes() for path, file in files_of(sound).items()}
    assert "complete and uncorrupted" in verify_run(str(sound), repair=True)
    assert run_command(["verify", str(sound), "repair=true"]) == 0
    assert {path: file.read_bytes() for path, file in files_of(sound).items()} == before


def test_the_command_line_says_what_it_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("ledger", tmp_path)
    (run / "data" / "alien").write_text("?")
    assert run_command(["verify", str(run)]) == 2
    assert "delete data/alien, which this run did not write" in capsys.readouterr().err
    for option in ("--plan", "plan=true"):
        assert run_command(["verify", str(run), "repair=true", option]) == 0
        assert "What repair=true would do" in capsys.readouterr().out
    assert (run / "data" / "alien").exists()
    assert run_command(["verify", str(run), "repair=true"]) == 0
    assert run_command(["verify", str(run)]) == 0
    assert RunFolder.at(str(run)).is_done, "nothing but a foreign file was wrong"


def as_an_earlier_version_wrote_it(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    for key in NEWER:
        del manifest[key]
    manifest["parents"] = [
        {k: v for k, v in parent.items() if k != "content"} for parent in manifest["parents"]
    ]
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["prepare", "ledger"])
def test_of_runs_of_earlier_versions_it_says_what_it_cannot_know(tmp_path: Path, kind: str) -> None:
    run = make(kind, tmp_path)
    as_an_earlier_version_wrote_it(run)
    assert named(run) == []
    said = verify_run(str(run))
    assert "written by an earlier version, which recorded no checksum" in said
    assert ("complete and uncorrupted" in said) == (kind == "ledger"), "its units have checksums"
    (file,) = run.glob("data/*001*")
    with damaged(file, lambda data: data[:600]):
        assert any(file.name in text for text in named(run))
        # The recipe, run again, makes another run, so this one stays done.
        with pytest.raises(DataError, match="made by an earlier version"):
            verify_run(str(run), repair=True)
        assert RunFolder.at(str(run)).is_done
        assert set(UNITS if kind == "ledger" else ()) == RunFolder.at(str(run)).done_units()


def test_trainings_and_views_of_earlier_versions(tmp_path: Path) -> None:
    """A training has attempts but no units, and no folder of rejects if there were none."""
    run = RunFolder.open(str(tmp_path), "train", "t", "00000001")
    run.start_attempt()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    run.store.write("model/model.safetensors", weights)
    run.store.write("curve.json", b"[]")
    outputs = {"model": "model", "curve": "curve.json", "rejects": "rejects"}
    made = Manifest(verb="train", name="t", fingerprint="00000001", recipe={}, outputs=outputs)
    run.finish(made, "")
    url = Path(run.url)
    as_an_earlier_version_wrote_it(url)
    assert named(url) == []
    assert run_command(["verify", run.url, "repair=true"]) == 0
    assert run.is_done
    with damaged(url / "model" / "model.safetensors", lambda data: data[:-1]):
        cut = f"{len(weights) - 1} bytes, expected {len(weights)}"
        assert named(url) == [f"model/model.safetensors: {cut}"]
    with damaged(url / "model" / "model.safetensors", lambda data: None):
        assert named(url) == ["model (model) is missing"]
    view = RunFolder.open(str(tmp_path), "filter", "f", "00000002")
    view.store.write("view.parquet", b"garbage")
    kept = Manifest(
        verb="filter",
        name="f",
        fingerprint="00000002",
        recipe={},
        outputs={"view": "view.parquet"},
    )
    view.finish(kept, "")
    as_an_earlier_version_wrote_it(Path(view.url))
    assert any("view.parquet" in text for text in named(view.url))
    view.store.write("view.parquet", b"")
    assert any("view.parquet" in text for text in named(view.url))


def test_a_run_whose_inputs_changed_is_not_reopened(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data").url
    shard = tmp_path / "shard-000000.tar"
    shutil.copy(Path(data) / "data" / shard.name, shard)
    recipe = ScoreRecipe(
        name="s",
        root=str(tmp_path / "runs"),
        inputs=(str(shard),),
        model="package://models/nano",
    )

    def body(run: Run[object]) -> Manifest:
        return run.finish()

    url = once(score.open_run, recipe, body).url
    (Path(url) / "recipe.yaml").write_text("?")
    assert "to be made again" in verify_run(url, repair=True, plan=True)
    shard.write_bytes(flip_a_bit(shard.read_bytes()))
    with pytest.raises(DataError, match="data has changed"):
        verify_run(url, repair=True)
    assert RunFolder.at(url).is_done


def test_a_parent_that_is_gone_or_replaced_is_named(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    recipe = ScoreRecipe(
        name="s",
        root=str(tmp_path),
        inputs=(f"{made.url}/data",),
        model="package://models/nano",
    )
    url = once(score.open_run, recipe, lambda run: run.finish()).url
    assert named(url) == []
    shutil.move(made.url, tmp_path / "away")
    assert "a parent run" in named(url)[0]
    with pytest.raises(DataError, match="Verify or make that run first"):
        verify_run(url, repair=True)
    assert RunFolder.at(url).is_done


def test_a_page_carries_its_checksum() -> None:
    page = sealed("<html>é</html>")
    assert page.startswith("<html>é</html>".encode())
    assert is_sealed(page) is True
    assert is_sealed(flip_a_bit(page)) in (False, None)
    assert is_sealed(page.replace(b"html", b"HTML", 1)) is False
    assert is_sealed(b"<html></html>") is None
