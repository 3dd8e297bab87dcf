"""A stage that stalls holds the reading back: memory stays bounded, and all goes on afterwards."""

import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from consomme.base.sample import ImageFile, Reject, Sample, caption_turns
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.stage import BytesStage, Outcome, UnitSample
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, Work, write_part
from consomme.storage.unit import Unit

pytestmark = pytest.mark.ray

NUM_UNITS, UNIT_MB = 100, 8
STORE_MB = 200
ACTORS = 2


class Reader:
    """Makes units of noise, and notes each in a folder."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
        (self.notes / f"read-{unit.unit_id}").touch()
        image = np.random.default_rng(unit.start).bytes(UNIT_MB * 2**20)
        sample = Sample(
            sample_id=unit.unit_id,
            images=(ImageFile(data=image, name="noise"),),
            turns=caption_turns("noise"),
            source="data",
            meta={},
        )
        return [(0, sample)], []


class Stalled(BytesStage):
    """Waits at its second unit until a file appears."""

    def __init__(self, notes: str) -> None:
        self.notes, self.done = Path(notes), 0

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        while self.done and not (self.notes / "go").exists():
            time.sleep(0.05)
        self.done += 1
        ids = [item.sample.sample_id for item in samples]
        rows = pa.array([item.row for item in samples], pa.int32())
        return Outcome(table=pa.table({"row": rows, "sample_id": pa.array(ids, pa.string())}))


def make_plan(folder: RunFolder) -> Plan:
    units = [
        Unit(
            unit_id=f"data-noise-{number:06d}",
            source="data",
            shard="noise.tar",
            start=number,
            count=1,
            num_bytes=UNIT_MB * 2**20,
        )
        for number in range(NUM_UNITS)
    ]
    plan = Plan(
        parts=(write_part(folder.store, 0, (Work(unit=unit) for unit in units)),), num_shards=1
    )
    plan.save(folder.store)
    return plan


@pytest.mark.long
def test_reading_waits_for_a_stage_that_stalls(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    folder = RunFolder.at(str(tmp_path / "run"))
    folder.create("name: stalled\n")
    plan = make_plan(folder)
    # Other tests may have left theirs for the next; this one needs its own size.
    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=3,
        object_store_memory=STORE_MB * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        failures: list[BaseException] = []
        job = Job(
            name="stalled",
            plan=plan,
            folder=folder,
            kind="rows",
            stage=partial(Stalled, str(notes)),
            pool=ActorPool(max_actors=ACTORS, min_actors=ACTORS, cpus=0.5, num_readers=2),
            read=Reader(notes),
        )

        def go() -> None:
            try:
                run_job(job)
            except BaseException as error:  # noqa: BLE001 - told to the test below.
                failures.append(error)

        running = threading.Thread(target=go)
        running.start()
        num_read = settle(notes, running)
        (notes / "go").touch()
        running.join(timeout=180)
        assert not running.is_alive()
        assert not failures, failures
    finally:
        ray.shutdown()
    assert num_read * UNIT_MB < STORE_MB, f"{num_read} units were read while nothing was worked on"
    assert folder.total_counts()["samples"] == NUM_UNITS
    assert len(list(notes.glob("read-*"))) == NUM_UNITS


def settle(notes: Path, running: threading.Thread) -> int:
    """Wait until no unit was read for six seconds, and say how many were."""
    seen, since = 0, time.monotonic()
    while time.monotonic() - since < 6 or not seen:
        assert running.is_alive(), "the run ended while its stage was stalled"
        time.sleep(0.1)
        found = len(list(notes.glob("read-*")))
        if found != seen:
            seen, since = found, time.monotonic()
    return seen
