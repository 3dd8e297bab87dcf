"""Send units through a pool of actors: read, work, commit; one unit is one block all the way.

Two decisions are made here. What travels is one row per unit, so that Ray Data can neither split
nor merge units. And an actor on a CPU reads for itself, since sending samples from one process to
another costs as much as decoding them; an actor that holds a GPU gets units that tasks have read
ahead, on whatever CPUs there are.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import DataError
from consomme.base.telemetry import Progress
from consomme.execution.errors import own_errors
from consomme.execution.gauges import GaugeLog
from consomme.execution.heartbeat import Heartbeat
from consomme.execution.loading import Row
from consomme.execution.rejects import top_reasons
from consomme.execution.spans import StageWatch
from consomme.execution.stage import Stage
from consomme.execution.worker import UnitWorker
from consomme.storage.ledger.commits import CommitRecord, reject_reasons
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan
from consomme.storage.unit import ReadUnit
from consomme.storage.units import read_unit

RECORDS_PER_SEGMENT = 2000
"""Commit records the driver packs into one object; a restart opens at most so many single ones."""

UNITS_PER_ACTOR = 3
"""Units in an actor at a time: one is read and decoded, one is worked on, one is committed."""

UNITS_AHEAD = 2 * UNITS_PER_ACTOR
"""Units that an actor is given at a time where there are many."""

GROWS_AT = 0.875
"""A pool grows when its actors have so much of what they can be given, as it does in Ray Data."""


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """The actors that do a stage's work. Ray grows and shrinks the pool between the limits."""

    max_actors: int
    min_actors: int = 1
    cpus: float = 1.0
    """CPUs an actor claims. Together they must leave some for reading and committing."""

    gpus: float = 0.0
    num_readers: int | None = None
    """Tasks that read units ahead, beside the actors; 0 lets actors read for themselves. None means
    0 for actors without a GPU, else one per actor, and two at least."""

    @property
    def readers(self) -> int:
        """Tasks that read ahead."""
        if self.num_readers is not None:
            return self.num_readers
        return max(2, self.max_actors) if self.gpus else 0

    def units_given(self, num_units: int) -> int:
        """Most units that an actor is given before it is done with the first.

        Of few units the first actor that is there would take all, and the others nothing.
        """
        return max(1, min(UNITS_AHEAD, num_units // max(1, self.max_actors)))


def run_units(
    plan: Plan,
    folder: RunFolder,
    *,
    kind: str,
    stage: type[Stage],
    stage_options: Mapping[str, Any],
    what: str,
    pool: ActorPool,
    max_reject_fraction: float = 1.0,
    read: ReadUnit = read_unit,
    check: Check | None = None,
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
        check: Looks at the sums over all finished units after each one, and raises if it makes no
            sense to go on.

    Raises:
        DataError: Too many samples were rejected.
        SupersededError: The run was started again elsewhere.
    """
    from consomme.execution.pending import pending

    attempt_no = folder.start_attempt()
    if folder.is_closed:
        folder.close(attempt_no)
        return
    todo = pending(folder, plan, pool.readers or 1)
    if todo.num_units:
        driver = _Driver(folder, attempt_no, plan, what, pool, max_reject_fraction, check)
        blocks = _dataset(todo, folder, attempt_no, kind, stage, stage_options, pool, read)
        with own_errors():
            driver.follow(blocks)
    folder.close(attempt_no)


def _dataset(
    todo: Any,
    folder: RunFolder,
    attempt_no: int,
    kind: str,
    stage: type[Stage],
    stage_options: Mapping[str, Any],
    pool: ActorPool,
    read: ReadUnit,
) -> Any:
    """Wire reading and work into one Ray Data pipeline; nothing runs yet."""
    import ray.data

    from consomme.execution.datasource import unit_context
    from consomme.execution.pending import reading

    context = unit_context()
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    given = pool.units_given(todo.num_units)
    at_a_time = min(UNITS_PER_ACTOR, given)
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROWS_AT * given / at_a_time
    return ray.data.read_datasource(
        reading(folder.url, todo.slices, read if pool.readers else None),
        num_cpus=0.1,
        compute=ray.data.TaskPoolStrategy(size=pool.readers or 1),
        override_num_blocks=len(todo.slices),
    ).map(
        UnitWorker,
        fn_constructor_kwargs={
            "stage": stage,
            "options": dict(stage_options),
            "run_url": folder.url,
            "attempt": attempt_no,
            "kind": kind,
            "read": read,
        },
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.min_actors, pool.max_actors),
            max_size=max(1, pool.max_actors),
            max_tasks_in_flight_per_actor=given,
            max_concurrent_calls_per_actor=at_a_time,
            # `UnitWorker` sees to it that only one of them uses the model.
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


NO_PROGRESS_S = 6 * 3600.0
"""GPU nodes may queue for hours; after this long without a unit the run fails."""


Check = Callable[[Mapping[str, float]], None]
"""Looks at a run's sums so far."""


class _Driver:
    """Follows the receipts: progress, packing of records, the budget of rejects."""

    def __init__(
        self,
        folder: RunFolder,
        attempt_no: int,
        plan: Plan,
        what: str,
        pool: ActorPool,
        max_reject_fraction: float,
        check: Check | None,
    ) -> None:
        self.check = check
        self.folder, self.attempt_no, self.plan, self.what = folder, attempt_no, plan, what
        self.max_reject_fraction = max_reject_fraction
        self.most_rejects = max_reject_fraction * plan.num_rows
        self.watch = StageWatch(
            {"read": pool.readers or pool.max_actors}
            | dict.fromkeys(("decode", "work", "commit"), pool.max_actors)
        )
        self.fresh: list[CommitRecord] = []
        self.packed: set[str] = set()
        self.sequence = 0
        self.gauges = GaugeLog()

    def follow(self, blocks: Any) -> None:
        """Consume the pipeline to its end."""
        counts = self.folder.total_counts()
        rejected = counts.get("rejected", 0)
        sums = Counter(self.folder.total_sums()) if self.check else Counter()
        done = counts.get("samples", 0) + rejected
        with Progress(self.plan.num_rows, self.what, "samples", done=done) as progress:
            beat = Heartbeat(self.folder.store, self.attempt_no, progress, self.watch)
            with beat:
                for receipt in _receipts(blocks):
                    if receipt["error"]:
                        # Written by our own worker, on this cluster.
                        raise pickle.loads(receipt["error"])
                    record = CommitRecord.from_json(receipt["record"], "a receipt")
                    self.watch.add(json.loads(receipt["spans"]))
                    self.gauges.add(json.loads(receipt["gauges"]))
                    progress.note = self.watch.line
                    self._keep(record)
                    progress.advance(rows_of(record), dict(reject_reasons(record.counts)))
                    rejected += record.counts.get("rejected", 0)
                    if rejected > self.most_rejects:
                        raise DataError(self._too_many(rejected))
                    if self.check:
                        sums.update(record.sums)
                        self.check(sums)
        self.gauges.save(self.folder.store)

    def _keep(self, record: CommitRecord) -> None:
        """Collect a record; pack as many as make a segment."""
        if record.unit_id in self.packed:
            return
        self.packed.add(record.unit_id)
        self.fresh.append(record)
        if len(self.fresh) >= RECORDS_PER_SEGMENT:
            self.folder.pack_commits(self.attempt_no, self.sequence, self.fresh)
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
