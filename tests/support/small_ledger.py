"""A run with a ledger of four units, made without Ray; it can be interrupted and resumed."""

from pathlib import Path

import pyarrow as pa

from consomme.base.manifest import Manifest
from consomme.base.sample import Reject
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, Work, read_part, write_part
from consomme.storage.sidecar import table_bytes
from consomme.storage.unit import Unit

UNITS = tuple(f"web-{number:03d}" for number in range(4))
RECIPE = "name: web\n"


def small_run(root: Path) -> RunFolder:
    """Start or resume the run, and finish it."""
    run = RunFolder.open(str(root), "score", "web", "0123abcd")
    if run.is_done:
        return run
    run.create(RECIPE)
    if Plan.load(run.store) is None:
        part = write_part(run.store, 0, (Work(unit=_unit(name)) for name in UNITS))
        Plan(parts=(part,), num_shards=1).save(run.store)
    plan = Plan.load(run.store)
    assert plan
    attempt = run.start_attempt()
    done = run.done_units()
    for work in read_part(run.store, plan.parts[0].path):
        if work.unit.unit_id not in done:
            _do(run, attempt, work.unit)
            # As the worker does that opens the model.
            run.store.create("selfcheck.json", b'{"is": "checked"}')
    run.close(attempt)
    made = Manifest(verb="score", name="web", fingerprint="0123abcd", recipe={})
    counts = run.total_counts()
    run.finish(Manifest(**{**vars(made), "counts": counts, "outputs": {"scores": "data"}}), RECIPE)
    return run


def _unit(name: str) -> Unit:
    return Unit(unit_id=name, source="web", shard="s.tar", start=0, count=3, num_bytes=9)


def _do(run: RunFolder, attempt: int, unit: Unit) -> None:
    """Two samples and one reject."""
    table = pa.table({"row": [0, 1], "sample_id": [f"{unit.unit_id}-{row}" for row in (0, 1)]})
    file = run.write_output(unit, "scores", table_bytes(table), "parquet")
    reject = Reject(
        sample_id="c", source="web", reason="caption_empty", detail="", reference="s.tar@2"
    )
    run.commit(attempt, unit, [file], {"samples": 2}, [reject])
