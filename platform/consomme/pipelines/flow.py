"""Send units through a pool of actors: read, work, commit; one unit is one block all the way.

One decision is made here: what travels between stages is one row per unit, so that Ray Data can
neither split nor merge units, and a unit is committed by the stage after the one that made it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample, table_to_samples
from consomme.base.telemetry import Progress
from consomme.pipelines.failures import own_errors
from consomme.pipelines.packing import (
    files_from_bytes,
    files_to_bytes,
    from_bytes,
    rejects_from_json,
    rejects_to_json,
    to_bytes,
)
from consomme.pipelines.progress import Heartbeat
from consomme.pipelines.runs import top_reasons
from consomme.pipelines.spans import StageWatch, now, timed
from consomme.storage.files import open_store
from consomme.storage.ledger import RunFolder
from consomme.storage.plan import Plan
from consomme.storage.records import CommitRecord, reject_reasons
from consomme.storage.sidecar import table_bytes
from consomme.storage.suspects import Gate, clear, work_safely
from consomme.storage.units import ReadUnit, Unit, read_unit
from consomme.vision.decode import DecodeProblem, decode

Row = dict[str, Any]

RECORDS_PER_SEGMENT = 2000
"""Commit records the driver packs into one object; a restart opens at most so many single ones."""

DECODE_THREADS = 2


@dataclass(kw_only=True)
class Outcome:
    """What a stage made of one unit."""

    table: pa.Table
    """Columns with `row` and `sample_id` first."""

    rejects: list[tuple[int, Reject]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Further output: kind, suffix and content of each file."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A sample and where it is in its unit."""

    row: int
    sample: Sample


@dataclass(frozen=True, kw_only=True)
class Decoded(Item):
    """A sample with its picture decoded."""

    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The actors that do a stage's work. Ray grows and shrinks the pool between the limits."""

    max_actors: int
    min_actors: int = 1
    cpus: float = 1.0
    """CPUs an actor claims. Together they must leave some for reading and committing."""

    gpus: float = 0.0
    num_readers: int | None = None
    """Units that are read ahead at once; None takes one per actor, and two at least."""

    @property
    def readers(self) -> int:
        """Units that are read ahead at once."""
        return self.num_readers or max(2, self.max_actors)


class UnitStage:
    """Base of a stage that works on one unit: unpack, decode, `work`, pack.

    Two units are in an actor at a time: one is decoded while the other is worked on.
    """

    min_side_px: int | None = None
    """Pictures may come smaller than they are, with both sides at least this long: that is decoded
    in less time. None decodes them in full."""

    def work(self, samples: Sequence[Decoded]) -> Outcome:
        """Do the stage's work on the samples whose pictures could be decoded."""
        raise TypeError(f"{type(self).__name__} defines no work()")


class BytesStage:
    """Base of a stage that wants samples as they are, without a look at their pictures."""

    def work(self, samples: Sequence[Item]) -> Outcome:
        """Do the stage's work on all samples that could be read."""
        raise TypeError(f"{type(self).__name__} defines no work()")


Stage = UnitStage | BytesStage


class UnitWorker:
    """Runs a stage inside Ray Data."""

    def __init__(self, stage: type[Stage], options: Mapping[str, Any], run_url: str) -> None:
        self.store = open_store(run_url)
        self.stage = stage(**options)
        self.model = threading.Lock()
        self.gate = Gate()
        self.threads = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, row: Row) -> Row:
        """Map one packed unit to its packed outcome."""
        unit = Unit.from_dict(json.loads(row["unit"]))
        numbers = json.loads(row["numbers"])
        samples = dict(zip(numbers, table_to_samples(from_bytes(row["samples"])), strict=True))
        rejects = rejects_from_json(row["rejects"])
        spans = json.loads(row["spans"])

        def run(rows: Sequence[int]) -> tuple[Outcome, list[tuple[int, Reject]]]:
            chosen = {number: samples[number] for number in rows}
            if isinstance(self.stage, BytesStage):
                with self.model, timed(spans, "work"):
                    items = [Item(row=number, sample=sample) for number, sample in chosen.items()]
                    return self.stage.work(items), []
            with timed(spans, "decode"):
                good, bad = self._decode(chosen, self.stage.min_side_px)
            with self.model, timed(spans, "work"):
                return self.stage.work(good), bad

        (outcome, bad), condemned = work_safely(self.store, unit.unit_id, numbers, run, self.gate)
        killers = [
            (number, reject_of(samples[number], "killed_worker", KILLED)) for number in condemned
        ]
        every = sorted([*rejects, *bad, *outcome.rejects, *killers], key=lambda entry: entry[0])
        return {
            "unit": row["unit"],
            "table": to_bytes(outcome.table),
            "rejects": rejects_to_json(every),
            "counts": json.dumps({"samples": outcome.table.num_rows, **outcome.counts}),
            "sums": json.dumps(outcome.sums),
            "files": files_to_bytes(outcome.files),
            "spans": json.dumps(spans),
        }

    def _decode(
        self, samples: Mapping[int, Sample], min_side_px: int | None
    ) -> tuple[list[Decoded], list[tuple[int, Reject]]]:
        """Decode pictures in threads; those that cannot be had become rejects."""
        images = self.threads.map(
            partial(decode, min_side_px=min_side_px), [s.image for s in samples.values()]
        )
        good: list[Decoded] = []
        bad: list[tuple[int, Reject]] = []
        for (number, sample), image in zip(samples.items(), images, strict=True):
            if isinstance(image, DecodeProblem):
                bad.append((number, reject_of(sample, image.reason, image.detail)))
            else:
                good.append(Decoded(row=number, sample=sample, image=image))
        return good, bad


KILLED = "the process ended each time it worked on this sample alone"


def commit_row(row: Row, *, run_url: str, attempt: int, kind: str) -> Row:
    """Write one unit's columns and commit it; the last stage."""
    began = now()
    folder = RunFolder.at(run_url)
    unit = Unit.from_dict(json.loads(row["unit"]))
    table = table_bytes(from_bytes(row["table"]))
    files = [
        folder.write_output(unit, name, data, suffix)
        for name, suffix, data in [(kind, "parquet", table), *files_from_bytes(row["files"])]
    ]
    rejects = [reject for _, reject in rejects_from_json(row["rejects"])]
    record = folder.commit(
        attempt, unit, files, json.loads(row["counts"]), rejects, json.loads(row["sums"])
    )
    clear(folder.store, unit.unit_id)
    spans = json.loads(row["spans"]) | {"commit": [began, now()]}
    return {"record": record.to_json(), "spans": json.dumps(spans)}


def run_units(
    plan: Plan,
    folder: RunFolder,
    *,
    kind: str,
    stage: type[Stage],
    stage_options: Mapping[str, Any],
    what: str,
    pool: Pool,
    max_reject_fraction: float = 1.0,
    read: ReadUnit = read_unit,
) -> None:
    """Do every unit that is not committed yet, and close the ledger.

    Args:
        plan: All units of the run, done or not.
        folder: Where outputs and commits go.
        kind: Kind of output file.
        stage: The stage class; loads once per actor.
        stage_options: Its constructor's arguments.
        what: Name of the stage on the progress line.
        pool: How many actors, and what each claims.
        max_reject_fraction: Stop as soon as it is certain that more will be rejected.
        read: Reads one unit.

    Raises:
        DataError: Too many samples were rejected.
        SupersededError: The run was started again elsewhere.
    """
    from consomme.pipelines.feed import pending

    attempt = folder.start_attempt()
    if folder.is_closed:
        folder.close(attempt)
        return
    todo = pending(folder, plan, pool.readers)
    if todo.num_units:
        driver = _Driver(folder, attempt, plan, what, pool, max_reject_fraction)
        blocks = _dataset(todo, folder, attempt, kind, stage, stage_options, pool, read)
        with own_errors():
            driver.follow(blocks)
    folder.close(attempt)


def _dataset(
    todo: Any,
    folder: RunFolder,
    attempt: int,
    kind: str,
    stage: type[Stage],
    stage_options: Mapping[str, Any],
    pool: Pool,
    read: ReadUnit,
) -> Any:
    """Wire reading, work and commits into one Ray Data pipeline; nothing runs yet."""
    import ray.data

    from consomme.pipelines.feed import UnitSource

    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    # Each row leaves in a block of its own: a unit never waits for, or dies with, another.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    source = UnitSource(folder.url, todo.slices, read)
    return (
        ray.data.read_datasource(
            source,
            num_cpus=0.1,
            compute=ray.data.TaskPoolStrategy(size=pool.readers),
            override_num_blocks=len(todo.slices),
        )
        .map(
            UnitWorker,
            fn_constructor_kwargs={
                "stage": stage,
                "options": dict(stage_options),
                "run_url": folder.url,
            },
            compute=ray.data.ActorPoolStrategy(
                min_size=min(pool.min_actors, pool.max_actors),
                max_size=max(1, pool.max_actors),
                max_concurrent_calls_per_actor=2,
                # `UnitWorker` sees to it that only one of them uses the model.
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        .map(
            commit_row,
            fn_kwargs={"run_url": folder.url, "attempt": attempt, "kind": kind},
            num_cpus=0.1,
        )
    )


NO_PROGRESS_S = 6 * 3600.0
"""GPU nodes may queue for hours; after this long without a unit the run fails."""


class _Driver:
    """Follows the receipts: progress, packing of records, the budget of rejects."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: int,
        plan: Plan,
        what: str,
        pool: Pool,
        max_reject_fraction: float,
    ) -> None:
        self.folder, self.attempt, self.plan, self.what = folder, attempt, plan, what
        self.max_reject_fraction = max_reject_fraction
        self.most_rejects = max_reject_fraction * plan.num_rows
        self.watch = StageWatch(
            {"read": pool.readers, "decode": pool.max_actors, "work": pool.max_actors}
        )
        self.fresh: list[CommitRecord] = []
        self.packed: set[str] = set()
        self.sequence = 0

    def follow(self, blocks: Any) -> None:
        """Consume the pipeline to its end."""
        counts = self.folder.total_counts()
        rejected = counts.get("rejected", 0)
        done = counts.get("samples", 0) + rejected
        with Progress(self.plan.num_rows, self.what, "samples", done=done) as progress:
            beat = Heartbeat(self.folder.store, self.attempt, progress, self.watch)
            with beat:
                for receipt in _receipts(blocks):
                    record = CommitRecord.from_json(receipt["record"], "a receipt")
                    self.watch.add(json.loads(receipt["spans"]))
                    progress.note = self.watch.line
                    self._keep(record)
                    progress.advance(rows_of(record), dict(reject_reasons(record.counts)))
                    rejected += record.counts.get("rejected", 0)
                    if rejected > self.most_rejects:
                        raise DataError(self._too_many(rejected))

    def _keep(self, record: CommitRecord) -> None:
        """Collect a record; pack as many as make a segment."""
        if record.unit_id in self.packed:
            return
        self.packed.add(record.unit_id)
        self.fresh.append(record)
        if len(self.fresh) >= RECORDS_PER_SEGMENT:
            self.folder.pack_commits(self.attempt, self.sequence, self.fresh)
            self.fresh, self.sequence = [], self.sequence + 1

    def _too_many(self, rejected: int) -> str:
        top = top_reasons(self.folder.total_counts())
        return (
            f"{self.folder.url}: {rejected:,} of {self.plan.num_rows:,} samples are rejected"
            f" already ({top}), more than max_reject_fraction={self.max_reject_fraction}; stopped."
            " Look into rejects/, mend the data, or raise the limit and run again to go on"
        )


def _receipts(blocks: Any) -> Iterator[Row]:
    yield from blocks.iter_rows()


def rows_of(record: CommitRecord) -> int:
    """Rows a commit record accounts for, rejects included."""
    return record.counts.get("samples", 0) + record.counts.get("rejected", 0)


def reject_of(sample: Sample, reason: str, detail: str) -> Reject:
    """Make the reject of a sample that was read but cannot be used."""
    return Reject(
        sample_id=sample.sample_id,
        source=sample.source,
        reason=reason,
        detail=detail,
        reference=sample.image_name,
    )
