"""Run a job: send its units through a pool of actors that read, work and commit.

One row per unit travels through Ray Data, so it can neither split nor merge units. An actor on a
CPU reads for itself, since sending samples from one process to another costs as much as decoding
them; an actor that holds a GPU gets units that tasks have read ahead, on whatever CPUs there are.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from consomme.base.errors import DataError, StorageAwayError
from consomme.base.telemetry import Progress
from consomme.execution.errors import find_own
from consomme.execution.gauges import GaugeLog
from consomme.execution.heartbeat import Heartbeat, beating
from consomme.execution.job import UNITS_PER_ACTOR, Job
from consomme.execution.pending import Pending, pending
from consomme.execution.rejects import top_reasons
from consomme.execution.spans import StageWatch
from consomme.execution.wire import Receipt
from consomme.execution.worker import UnitWorker
from consomme.storage.ledger.commits import CommitRecord, reject_reasons
from consomme.storage.ledger.inflight import clear

logger = logging.getLogger(__name__)

RECORDS_PER_SEGMENT = 2000
"""Commit records that the driver packs into one object; a restart opens at most so many single
ones."""

SCALE_UP_AT = 0.875
"""Scale the pool up when its actors are this full; Ray Data's own default."""

MAX_IDLE_ROUNDS = 2
"""Rounds in a row in which workers without storage hand all units back, until the run fails."""

NO_PROGRESS_S = 6 * 3600.0
"""GPU nodes may queue for hours; after this long without a unit the run fails."""


def run_job(job: Job) -> None:
    """Do every unit that is not committed yet, and close the ledger.

    Raises:
        DataError: Too many samples were rejected.
        SupersededError: The run was started again elsewhere.
    """
    attempt_no = job.folder.start_attempt()
    if not job.folder.is_closed:
        _do_units(job, attempt_no)
    job.folder.close(attempt_no)


def _do_units(job: Job, attempt_no: int) -> None:
    """Do the units that are not committed; in rounds, because workers may hand units back.

    Raises:
        StorageAwayError: No worker reaches the storage, although this process does.
    """
    idle_rounds, left = 0, None
    driver = _Driver(job, attempt_no)
    while True:
        todo = pending(job.folder, job.plan, job.pool.readers or 1)
        if not todo.num_units:
            return
        idle_rounds = idle_rounds + 1 if todo.num_units == left else 0
        left = todo.num_units
        if idle_rounds >= MAX_IDLE_ROUNDS and driver.handed_back is not None:
            raise driver.handed_back
        try:
            driver.follow(_dataset(job, attempt_no, todo))
        # What a reading task raises comes back as some class of Ray's.
        except Exception as error:
            own = find_own(error)
            if driver.is_cut_off or not isinstance(own, StorageAwayError):
                raise
            driver.handed_back = own
        if driver.handed_back is None:
            return


def _dataset(job: Job, attempt_no: int, todo: Pending) -> Any:
    """Connect reading and work as one Ray Data pipeline; nothing runs yet."""
    import ray.data

    from consomme.execution.datasource import unit_context
    from consomme.execution.pending import reading

    pool = job.pool
    context = unit_context()
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    given = pool.units_given(todo.num_units)
    at_a_time = min(UNITS_PER_ACTOR, given)
    context.autoscaling_config.actor_pool_util_upscaling_threshold = SCALE_UP_AT * given / at_a_time
    return ray.data.read_datasource(
        reading(job.folder.url, todo.slices, job.read if pool.readers else None),
        num_cpus=0.1,
        compute=ray.data.TaskPoolStrategy(size=pool.readers or 1),
        override_num_blocks=len(todo.slices),
    ).map(
        UnitWorker,
        fn_constructor_kwargs={"job": job, "attempt_no": attempt_no},
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.min_actors, pool.max_actors),
            max_size=max(1, pool.max_actors),
            max_tasks_in_flight_per_actor=given,
            max_concurrent_calls_per_actor=at_a_time,
            # `UnitWorker` lets only one of them use the model.
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


class _Driver:
    """Follows the receipts: progress, packing of records, the budget of rejects."""

    def __init__(self, job: Job, attempt_no: int) -> None:
        self.job, self.folder, self.attempt_no = job, job.folder, attempt_no
        self.max_rejects = job.max_reject_fraction * job.plan.num_rows
        self.watch = StageWatch(
            {"read": job.pool.readers or job.pool.max_actors}
            | dict.fromkeys(("decode", "work", "commit"), job.pool.max_actors)
        )
        self.unpacked: list[CommitRecord] = []
        self.unit_ids: set[str] = set()
        self.num_segments = 0
        self.gauges = GaugeLog()
        self.handed_back: StorageAwayError | None = None
        """Why a worker handed a unit back, in this round."""

        self.is_cut_off = False
        """Whether this process itself has lost the storage."""

    def follow(self, blocks: Any) -> None:
        """Consume the pipeline to its end."""
        counts = self.folder.total_counts()
        rejected = counts.get("rejected", 0)
        unexpected = self.job.reading.unexpected(counts)
        check = self.job.check
        sums = Counter(self.folder.total_sums()) if check else Counter()
        done = counts.get("samples", 0) + rejected
        self.handed_back = None
        with (
            Progress(self.job.plan.num_rows, self.job.name, "samples", done=done) as progress,
            beating(self.folder.store, self.attempt_no, progress, self.watch) as heartbeat,
        ):
            for row in blocks.iter_rows():
                receipt = Receipt.unpack(row)
                if receipt.handed_back:
                    self._take_back(receipt, heartbeat)
                    continue
                if receipt.error:
                    raise receipt.error
                record = receipt.record
                assert record is not None
                self.watch.add(receipt.spans)
                self.gauges.add(receipt.gauges)
                progress.note = self.watch.line
                self._collect(record)
                progress.advance(rows_of(record), dict(reject_reasons(record.counts)))
                unexpected += self.job.reading.unexpected(record.counts)
                if unexpected > self.max_rejects:
                    raise DataError(self._too_many(unexpected))
                if check:
                    sums.update(record.sums)
                    check(sums)
        self.gauges.save(self.folder.store)

    def _take_back(self, receipt: Receipt, heartbeat: Heartbeat) -> None:
        """Note that a unit has to be done by another worker, or later."""
        assert isinstance(receipt.error, StorageAwayError)
        self.is_cut_off = True
        if heartbeat.lost is not None:
            raise heartbeat.lost
        # The worker did not die of the unit, but could not say so in the storage.
        for note in (receipt.handed_back, f"read-{receipt.handed_back}"):
            clear(self.folder.store, note)
        self.is_cut_off = False
        self.handed_back = receipt.error
        logger.warning("%s: a worker handed a unit back: %s", self.job.name, receipt.error)

    def _collect(self, record: CommitRecord) -> None:
        """Collect a record; pack them when there are enough for a segment."""
        if record.unit_id in self.unit_ids:
            return
        self.unit_ids.add(record.unit_id)
        self.unpacked.append(record)
        if len(self.unpacked) >= RECORDS_PER_SEGMENT:
            self.folder.pack_commits(self.attempt_no, self.num_segments, self.unpacked)
            self.unpacked, self.num_segments = [], self.num_segments + 1

    def _too_many(self, rejected: int) -> str:
        top = top_reasons(self.folder.total_counts())
        return (
            f"{self.folder.url}: {rejected:,} of {self.job.plan.num_rows:,} samples are rejected"
            f" already ({top}), more than max_reject_fraction={self.job.max_reject_fraction};"
            " stopped. Look into rejects/, mend the data, or raise the limit and run again to go on"
        )


def rows_of(record: CommitRecord) -> int:
    """Rows that a commit record accounts for, rejects included."""
    return record.counts.get("samples", 0) + record.counts.get("rejected", 0)
