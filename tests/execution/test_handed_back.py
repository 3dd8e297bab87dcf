"""A worker that loses its storage hands its unit back; the run ends only if nobody reaches it."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from tests.execution.test_errors import sample_of

from consomme.base.errors import StorageAwayError
from consomme.base.sample import Reject, Sample
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.loading import read_ahead
from consomme.execution.planning import plan_shards
from consomme.execution.stage import BytesStage, Outcome, UnitSample
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Work
from consomme.storage.shards import find_shards
from consomme.storage.unit import Unit
from consomme.storage.units import plan_units, read_unit
from consomme.storage.writers import tar_bytes

Read = tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]


class Naming(BytesStage):
    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        rows = pa.array([one.row for one in samples], pa.int32())
        names = pa.array([one.sample.sample_id for one in samples], pa.string())
        return Outcome(table=pa.table({"row": rows, "sample_id": names}))


def losing(marks: str, times: int, unit: Unit) -> Read:
    """Read a unit; the first times, fail as a store does whose patience is over."""
    for number in range(times):
        try:
            os.close(os.open(f"{marks}/{unit.unit_id}-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        raise StorageAwayError(f"{unit.shard}: gave up after 9 tries in 600 s")
    return read_unit(unit)


def job(tmp_path: Path, times: int, num_readers: int) -> Job:
    for name in ("shards", "marks"):
        (tmp_path / name).mkdir()
    for k in range(4):
        (tmp_path / "shards" / f"{k}.tar").write_bytes(tar_bytes([sample_of(f"s{k}", b"-")]))
    folder = RunFolder.at(str(tmp_path / "run"))
    folder.create("name: n\n")
    return Job(
        name="naming",
        plan=plan_shards(folder, find_shards([str(tmp_path / "shards")]), 8),
        folder=folder,
        kind="rows",
        stage=Naming,
        pool=ActorPool(max_actors=1, cpus=0.5, num_readers=num_readers),
        read=partial(losing, str(tmp_path / "marks"), times),
    )


@pytest.mark.ray
@pytest.mark.parametrize(("times", "num_readers"), [(1, 0), (2, 1)])
def test_units_that_were_handed_back_are_done(
    tmp_path: Path, one_ray: object, times: int, num_readers: int
) -> None:
    work = job(tmp_path, times, num_readers)
    run_job(work)
    assert work.folder.total_counts() == {"samples": 4}
    assert len(list((tmp_path / "marks").iterdir())) == 4 * times
    assert not list((tmp_path / "run").glob("inflight/*")), "no death is held against a unit"


@pytest.mark.ray
def test_a_storage_that_no_worker_reaches_ends_the_run(tmp_path: Path, one_ray: object) -> None:
    work = job(tmp_path, 1000, 0)
    with pytest.raises(StorageAwayError, match="gave up after 9 tries"):
        run_job(work)
    tries = len(list((tmp_path / "marks").iterdir()))
    assert tries == 4 * 2, "once more, in case that it comes back"


def test_a_task_that_loses_its_storage_leaves_reading_to_the_actor(tmp_path: Path) -> None:
    work = job(tmp_path, 1, 1)
    unit = plan_units([str(tmp_path / "shards" / "0.tar")], "data")[0]
    assert read_ahead(work.folder.store, Work(unit=unit), work.read).content is None
    again = read_ahead(work.folder.store, Work(unit=unit), work.read).content
    assert again is not None
    assert [sample.sample_id for sample in again.samples.values()] == ["s0"]
