"""Jobs for one worker in the test's own process, without a plan and without Ray."""

from collections.abc import Callable
from typing import Any

from consomme.execution.job import ActorPool, Job
from consomme.execution.stage import Stage
from consomme.execution.wire import Receipt, UnitRow
from consomme.execution.worker import UnitWorker
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, Work
from consomme.storage.unit import Unit


def job_of(stage: Callable[[], Stage], folder: RunFolder, kind: str, **options: Any) -> Job:
    """A job whose units come one by one from the test."""
    plan = Plan(parts=(), num_shards=0)
    pool = ActorPool(max_actors=1)
    return Job(name="test", plan=plan, folder=folder, kind=kind, stage=stage, pool=pool, **options)


def do_unit(worker: UnitWorker, unit: Unit) -> Receipt:
    """Let a worker read and do a unit, over the wire; raise the error that it returns."""
    row = UnitRow(work=Work(unit=unit)).pack().to_pylist()[0]
    receipt = Receipt.unpack(worker(row))
    if receipt.error:
        raise receipt.error
    return receipt
