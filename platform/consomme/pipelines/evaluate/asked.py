"""What each model is asked, the units that benchmarks are cut into, and how a unit is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample
from consomme.execution.planning import UNITS_PER_PART
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, Work, read_part, write_part
from consomme.storage.unit import Unit

if TYPE_CHECKING:
    from consomme.engines.generation.models import EngineModel
    from consomme.evaluate.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One benchmark that one model is asked; a part of it, if it consists of several."""

    source: str
    """Names both in units and rejects: `model/benchmark`, and the number of the part."""

    model: EngineModel
    node: Mapping[str, Any]
    """Of the whole benchmark, as any process finds its files."""

    part: int
    """Number of the part, from 0."""

    is_written: bool
    """Whether the model writes its answers; otherwise their likelihood is asked for."""

    num_items: int
    version: str
    """Hash of its data; empty if it has none."""

    def build(self) -> Benchmark:
        """Build the part.

        Raises:
            DataError: Its data are not what they were when the run began.
        """
        from consomme.evaluate.benchmark import HasData, parts_of
        from consomme.evaluate.benchmarks import BENCHMARKS

        part = parts_of(BENCHMARKS.build(self.node))[self.part]
        if isinstance(part, HasData) and part.data_version() != self.version:
            raise DataError(
                f"{self.source}: its questions changed while they were answered; run the same"
                " command again to begin anew, in another folder"
            )
        return part

    @property
    def engine_key(self) -> tuple[str, bool]:
        """Benchmarks with equal keys are answered by the same engine."""
        return self.model.model_hash, self.is_written


def plan_asked(folder: RunFolder, asked: Sequence[Asked], unit_items: int) -> Plan:
    """Return the plan of a run; make it, or extend it by what is not in it.

    What was answered in the cache when a run began need not be there any more when it goes on.

    Args:
        folder: The run.
        asked: What has to be answered by this run.
        unit_items: Most requests per unit.

    Raises:
        DataError: All units of the run are done, but it lacks answers.
    """
    begun, planned = Plan.load(folder.store), planned_sources(folder)
    plan = begun or Plan(parts=(), num_shards=0)
    new = [one for one in asked if begun is None or one.source not in planned]
    if not new:
        return plan
    lost = [one.source for one in new if one.source not in planned]
    if folder.is_closed and lost:
        raise DataError(
            f"{folder.url}: answers of {', '.join(lost)} were in the cache"
            " when this run began, and are not any more; delete the folder, and run the same"
            " command again"
        )
    # Units that are answered by one engine stand together.
    new.sort(key=lambda one: not one.is_written)
    new.sort(key=lambda one: [other.model for other in asked].index(one.model))
    works = (Work(unit=unit) for one in new for unit in _units(one, unit_items))
    parts = list(plan.parts)
    while chunk := list(islice(works, UNITS_PER_PART)):
        parts.append(write_part(folder.store, len(parts), chunk))
    plan = Plan(parts=tuple(parts), num_shards=plan.num_shards + len(new))
    plan.save(folder.store)
    return plan


def planned_sources(folder: RunFolder) -> set[str]:
    """Return what the units of a run ask; without a plan, if it is lost, what its records say."""
    plan = Plan.load(folder.store)
    if plan is None:
        return {record.unit.source for record in folder.iter_commits()}
    return {work.unit.source for part in plan.parts for work in read_part(folder.store, part.path)}


def _units(asked: Asked, unit_items: int) -> Iterator[Unit]:
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", asked.source)[:90]
    digest = hashlib.sha256(asked.source.encode()).hexdigest()[:8]
    for start in range(0, asked.num_items, unit_items):
        yield Unit(
            unit_id=f"{label}-{digest}-{start:09d}",
            source=asked.source,
            shard=f"benchmark://{asked.source}",
            start=start,
            count=min(unit_items, asked.num_items - start),
            num_bytes=0,
        )


def read_numbers(unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read a unit: the numbers of its requests, which an actor makes from the benchmark."""
    samples = [
        (row, Sample(sample_id=str(unit.start + row), turns=(), source=unit.source))
        for row in range(unit.count)
    ]
    return samples, []
