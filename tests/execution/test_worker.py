"""What an actor does with a unit, without Ray."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from tests.support.jobs import do_unit, job_of

from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.execution import worker
from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.storage.ledger.commits import CommitRecord
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import read_columns
from consomme.storage.units import plan_units
from consomme.storage.writers import tar_bytes

SIDE = 40


def sample(number: int) -> Sample:
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(out, "PNG")
    data = out.getvalue()
    return Sample(
        sample_id=f"s{number:03d}",
        images=(
            ImageFile(data=data[:50] if number % 10 == 3 else data, name=f"s{number:03d}.png"),
        ),
        turns=caption_turns(f"picture {number}"),
        source="data",
        meta={},
    )


class Red(UnitStage):
    """Notes how red each picture is, and how many came at once."""

    most = 0

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        Red.most = max(Red.most, len(samples))
        reds = [item.images[0].getpixel((0, 0))[0] for item in samples]
        return Outcome(
            table=pa.table(
                {
                    "row": pa.array([item.row for item in samples], pa.int32()),
                    "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
                    "red": pa.array(reds, pa.int32()),
                }
            ),
            counts={"odd": sum(red % 2 for red in reds)},
            sums={"red": float(sum(reds))},
        )


def run(folder: Path, num: int) -> tuple[RunFolder, CommitRecord]:
    shards = folder / "shards"
    shards.mkdir(parents=True)
    (shards / "a.tar").write_bytes(tar_bytes([sample(number) for number in range(num)]))
    made = RunFolder.at(str(folder / "run"))
    attempt = made.start_attempt()
    Red.most = 0
    actor = worker.UnitWorker(job_of(Red, made, "reds"), attempt)
    (unit,) = plan_units([str(shards)], "data", 1000)
    record = do_unit(actor, unit).record
    made.close(attempt)
    assert record is not None
    return made, record


def test_pictures_are_in_memory_a_piece_at_a_time_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record = run(tmp_path / "whole", 100)
    assert Red.most == 90
    monkeypatch.setattr(worker, "PIECE_BYTES", 7 * SIDE * SIDE * 3)
    pieces, torn = run(tmp_path / "pieces", 100)
    assert Red.most == 7
    assert torn.files == record.files
    assert record.counts["samples"] == 90
    assert record.counts["rejected/image_truncated"] == 10
    assert record.sums["red"] == sum(n for n in range(100) if n % 10 != 3)
    table = read_columns(pieces.url, ["red"], kind="reds")
    assert table["red"].to_pylist() == [n for n in range(100) if n % 10 != 3]
    assert [r.sample_id for r in pieces.rejects()] == [f"s{n:03d}" for n in range(3, 100, 10)]


def test_a_unit_of_nothing_but_bad_pictures_is_committed_too(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "a.tar").write_bytes(tar_bytes([sample(3), sample(13)]))
    made = RunFolder.at(str(tmp_path / "run"))
    attempt = made.start_attempt()
    actor = worker.UnitWorker(job_of(Red, made, "reds"), attempt)
    (unit,) = plan_units([str(shards)], "data", 1000)
    do_unit(actor, unit)
    made.close(attempt)
    assert made.total_counts()["rejected"] == 2
    assert read_columns(made.url, ["red"], kind="reds").num_rows == 0


LOST = """
import sys
from consomme.base.errors import EngineLostError
from consomme.execution.stage import UnitStage
from consomme.execution.worker import UnitWorker
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.units import plan_units
from tests.support.jobs import do_unit, job_of

class Lost(UnitStage):
    is_shared = True
    def work(self, samples):
        if any(item.sample.sample_id == "s002" for item in samples):
            raise EngineLostError("no token came for 5 s")
        raise SystemExit("the others were tried")

shards, root = sys.argv[1:]
folder = RunFolder.at(root)
folder.create("name: lost")
worker = UnitWorker(job_of(Lost, folder, "reds"), folder.start_attempt())
do_unit(worker, plan_units([shards], "data", 8)[0])
"""


def test_a_lost_engine_ends_its_process_and_the_unit_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(tar_bytes([sample(n) for n in range(8)]))
    root = tmp_path / "run"

    def attempt() -> int:
        command = [sys.executable, "-c", LOST, str(tmp_path / "shards"), str(root)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert attempt() == -signal.SIGKILL
    (note,) = (root / "inflight").glob("*.json")
    assert json.loads(note.read_text())["deaths"] == 0
    # A second death of the same unit: from the third time on its samples are tried out in groups.
    assert attempt() == -signal.SIGKILL
    assert json.loads(note.read_text())["deaths"] == 1
