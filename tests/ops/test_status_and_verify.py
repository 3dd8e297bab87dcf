"""Output of status and verify; damage of every kind is found and can be repaired."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest
from consomme.base.sample import Reject
from consomme.cli import run_command
from consomme.ops import status, verify
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, Work, read_part, write_part
from consomme.storage.sidecar import table_bytes
from consomme.storage.unit import Unit

NUM_UNITS = 4


def unit(number: int) -> Unit:
    return Unit(
        unit_id=f"web-{number:03d}", source="web", shard="s.tar", start=0, count=3, num_bytes=9
    )


def do_unit(run: RunFolder, attempt: int, work: Work, spoil: str = "") -> None:
    """Two samples and one reject."""
    rows = [0, 1] if not spoil else [0]
    table = pa.table({"row": rows, "sample_id": [f"{work.unit.unit_id}-{row}" for row in rows]})
    file = run.write_output(work.unit, "scores", table_bytes(table), "parquet")
    reject = Reject(
        sample_id="c", source="web", reason="caption_empty", detail="", reference="s.tar@2"
    )
    run.commit(attempt, work.unit, [file], {"samples": 2}, [reject])


def begun(root: Path) -> tuple[RunFolder, Plan]:
    run = RunFolder.open(str(root), "score", "web", "0123abcd")
    run.create("name: web\n")
    part = write_part(run.store, 0, (Work(unit=unit(number)) for number in range(NUM_UNITS)))
    plan = Plan(parts=(part,), num_shards=1)
    plan.save(run.store)
    return run, plan


def drive(run: RunFolder, plan: Plan, most: int = NUM_UNITS) -> None:
    """Do remaining units up to `most`, and finish the run if none is left."""
    attempt = run.start_attempt()
    done = run.done_units()
    for work in read_part(run.store, plan.parts[0].path):
        if work.unit.unit_id not in done and len(done) < most:
            do_unit(run, attempt, work)
            done.add(work.unit.unit_id)
    if len(done) == NUM_UNITS:
        run.close(attempt)
        counts = run.total_counts()
        manifest = Manifest(
            verb="score", name="web", fingerprint="0123abcd", recipe={}, counts=counts
        )
        run.finish(manifest, "name: web\n")


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    run, plan = begun(tmp_path)
    drive(run, plan)
    return run


def test_a_sound_run_is_proved(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["verify", finished.url]) == 0
    shown = capsys.readouterr().out
    assert "complete and uncorrupted: 4 units, 8 files" in shown
    assert "sizes and checksums checked" in shown
    assert run_command(["verify", finished.url, "checksums=false"]) == 0


def file_of(run: RunFolder, kind: str) -> Path:
    path = run.commits()["web-001"].path_of(kind)
    assert path
    return Path(run.url) / path


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["scores", "rejects"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "web-001: .* its checksum differs"),
        (lambda path: path.unlink(), "web-001: .* is missing"),
        (lambda path: path.write_bytes(b"x"), "web-001: .* has 1 bytes, recorded"),
    ],
)
def test_damage_is_found_and_redone(
    finished: RunFolder, damage, message: str, kind: str, tmp_path: Path
) -> None:
    before = {f.path: finished.store.read(f.path) for f in finished.store.list("data/")}
    damage(file_of(finished, kind))
    with pytest.raises(DataError, match=message):
        verify.verify_run(finished.url)
    assert "redo 1 units" in verify.verify_run(finished.url, repair=True)
    assert not finished.is_done
    assert finished.done_units() == {"web-000", "web-002", "web-003"}
    plan = Plan.load(finished.store)
    assert plan
    drive(finished, plan)
    assert verify.verify(finished.url).problems == ()
    assert {f.path: finished.store.read(f.path) for f in finished.store.list("data/")} == before


def test_a_file_nobody_named_and_a_wrong_total_are_found(finished: RunFolder) -> None:
    finished.store.write("data/alien.parquet", b"?")
    manifest = json.loads(finished.store.read("manifest.json"))
    manifest["counts"]["samples"] += 1
    finished.store.write("manifest.json", json.dumps(manifest).encode())
    texts = [problem.text for problem in verify.verify(finished.url).problems]
    assert texts[0] == "data/alien.parquet is named by no record"
    assert texts[1].startswith("the manifest counts")


def test_records_that_claim_what_is_not_in_the_file_are_found(tmp_path: Path) -> None:
    run, plan = begun(tmp_path)
    attempt = run.start_attempt()
    work = next(read_part(run.store, plan.parts[0].path))
    do_unit(run, attempt, work, spoil="one row less than it says")
    run.close(attempt)
    run.finish(
        Manifest(verb="score", name="w", fingerprint="0", recipe={}, counts=run.total_counts()),
        "",
    )
    texts = [f"{p.unit_id} {p.text}" for p in verify.verify(run.url).problems]
    assert "1 rows, recorded 2" in texts[0]
    assert texts[1:] == [f"web-{n:03d} the unit has no record" for n in (1, 2, 3)]


def test_status_follows_a_run_from_storage_alone(tmp_path: Path) -> None:
    run, plan = begun(tmp_path)
    assert status.read_status(run.url).state == "planned"
    drive(run, plan, most=3)
    assert status.read_status(run.url).state == "starting"
    beat = {
        "attempt": 1,
        "state": "running",
        "rows_per_s": 1.5,
        "stages": "bottleneck work",
        "time": 1000.0,
        "host": "node-7",
        "pid": 42,
    }
    run.store.write("progress.json", json.dumps(beat).encode())
    seen = status.read_status(run.url, now=1010.0)
    assert (seen.state, seen.num_units_done, seen.num_rows_done, seen.num_rows) == (
        "running",
        3,
        9,
        12,
    )
    assert seen.seconds_left == 2.0
    shown = status.describe(seen, 1010.0)
    assert "3 of 4 units, 9 of 12 samples (75.0 %)" in shown
    assert "1.5 samples/s, 2 s left" in shown
    assert "bottleneck work" in shown
    assert "caption_empty" in shown
    silent = status.describe(status.read_status(run.url, now=1000.0 + 300), 1300.0)
    assert "no heartbeat for 5 min from attempt 1 on node-7 (pid 42)" in silent
    drive(run, plan)
    assert status.read_status(run.url).state == "done"
    assert "web-0123abcd: done" in status.describe_run(run.url)


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["status", str(tmp_path)]) == 2
    assert "found no recipe.yaml" in capsys.readouterr().err
    assert run_command(["verify", str(tmp_path)]) == 2
    assert "no run is there" in capsys.readouterr().err
