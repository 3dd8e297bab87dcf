"""Plan a run on the cluster: many shards are scanned at once, and no process holds all units.

The driver knows the shards; tasks scan their headers and write the parts of the plan. Which shards
make a part depends on the list alone, so an interrupted plan is resumed with the parts it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from consomme.base.telemetry import Progress
from consomme.storage.identity import pictures_beside
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, PlanPart, Work, read_part, save_shards, write_part
from consomme.storage.reading import Reading
from consomme.storage.shards import Shard
from consomme.storage.stores.open import open_store
from consomme.storage.unit import Unit
from consomme.storage.units import plan_shard
from consomme.storage.view import View

SHARDS_PER_PART = 64
UNITS_PER_PART = 4096
_AS_FOUND = Reading()
_AT_ONCE = 4
"""Planning tasks per CPU; they wait for storage most of the time."""


def plan_shards(
    folder: RunFolder,
    shards: Sequence[Shard],
    unit_rows: int,
    plan_one: Callable[..., list[Unit]] = plan_shard,
    reading: Reading = _AS_FOUND,
) -> Plan:
    """Return the run's plan; make it if it does not exist.

    Args:
        folder: The run; Ray must be running if there are many shards.
        shards: What `find_data` found.
        unit_rows: Most rows per unit.
        plan_one: Cuts one shard into units; gets the shard, `max_rows` and `reading`.
        reading: How records become samples.

    Raises:
        DataError: A shard cannot be read at all.
    """
    plan = Plan.load(folder.store)
    if plan is not None:
        return plan
    plan_one = partial(plan_one, reading=reading.for_units())
    planned = _planned_before(folder)
    done = sum(len(shards[k * SHARDS_PER_PART :][:SHARDS_PER_PART]) for k in planned)
    with Progress(len(shards), "plan", "shards", done=done) as progress:
        if 0 < len(shards) - done <= SHARDS_PER_PART:
            # One part is left, so a single task would make it; starting one takes longer than
            # making most parts.
            (number,) = set(range(-(-len(shards) // SHARDS_PER_PART))) - set(planned)
            chunk = shards[number * SHARDS_PER_PART :][:SHARDS_PER_PART]
            planned[number] = _plan_part(folder.url, number, chunk, unit_rows, plan_one)
            progress.advance(len(chunk))
        else:
            _plan_on_cluster(folder, shards, unit_rows, plan_one, planned, progress)
    root = folder.url.rsplit("/", 2)[0]
    save_shards(folder.store, shards, pictures_beside(shards, root, reading.image_root))
    plan = Plan(parts=tuple(part for _, part in sorted(planned.items())), num_shards=len(shards))
    plan.save(folder.store)
    return plan


def _plan_on_cluster(
    folder: RunFolder,
    shards: Sequence[Shard],
    unit_rows: int,
    plan_one: Callable[..., list[Unit]],
    planned: dict[int, PlanPart],
    progress: Progress,
) -> None:
    """Make the parts that are missing in `planned` in parallel tasks."""
    import ray

    remote = ray.remote(num_cpus=0.25)(_plan_part)
    before = set(planned)
    chunks = enumerate(_chunks(shards, SHARDS_PER_PART))
    limit = _AT_ONCE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, int] = {}
    while True:
        todo = ((k, chunk) for k, chunk in chunks if k not in before)
        for number, chunk in islice(todo, limit - len(running)):
            made = remote.remote(folder.url, number, chunk, unit_rows, plan_one)
            running[made] = number
        if not running:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ready)
        planned[number] = ray.get(ready)
        progress.advance(len(shards[number * SHARDS_PER_PART :][:SHARDS_PER_PART]))


def plan_view(folder: RunFolder, view: View) -> Plan:
    """Return the run's plan over the samples of a view; make it if it does not exist."""
    plan = Plan.load(folder.store)
    if plan is not None:
        return plan
    kept = (Work(unit=unit, bitmap=bitmap) for unit, bitmap in view.entries if any(bitmap))
    parts: list[PlanPart] = []
    while chunk := list(islice(kept, UNITS_PER_PART)):
        parts.append(write_part(folder.store, len(parts), chunk))
    num_shards = len({unit.shard for unit, _ in view.entries})
    plan = Plan(parts=tuple(parts), num_shards=num_shards)
    plan.save(folder.store)
    return plan


def _plan_part(
    run_url: str,
    number: int,
    shards: Sequence[Shard],
    max_rows: int,
    plan_one: Callable[..., list[Unit]],
) -> PlanPart:
    units = (Work(unit=unit) for shard in shards for unit in plan_one(shard, max_rows=max_rows))
    return write_part(open_store(run_url), number, units)


def _planned_before(folder: RunFolder) -> dict[int, PlanPart]:
    """Find the parts that an interrupted attempt wrote; each exists completely or not at all."""
    found = {}
    for file in folder.store.list("plan/part-"):
        work = list(read_part(folder.store, file.path))
        found[int(file.path[-len("000000.parquet") :].partition(".")[0])] = PlanPart(
            path=file.path,
            num_units=len(work),
            num_rows=sum(item.num_rows for item in work),
            num_bytes=sum(item.unit.num_bytes for item in work),
        )
    return found


def _chunks(shards: Sequence[Shard], size: int) -> Iterator[Sequence[Shard]]:
    for begin in range(0, len(shards), size):
        yield shards[begin : begin + size]
