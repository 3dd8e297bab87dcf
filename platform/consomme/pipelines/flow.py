"""Send units through a pool of actors: read, work, commit; one unit is one block all the way.

One decision is made here: what travels between stages is one row per unit, so that Ray Data can
neither split nor merge units, and a unit is committed by the stage after the one that made it.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image

from consomme.base.sample import Reject, Sample, samples_to_table, table_to_samples
from consomme.base.telemetry import Progress
from consomme.storage.ledger import RunFolder
from consomme.storage.sidecar import table_bytes
from consomme.storage.units import Unit, read_unit
from consomme.vision.decode import DecodeProblem, decode

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit to be done, or some of its rows."""

    unit: Unit
    rows: tuple[int, ...] | None = None
    """Rows wanted; None means all."""


@dataclass(kw_only=True)
class Outcome:
    """What a stage made of one unit."""

    table: pa.Table
    """Columns with `row` and `sample_id` first."""

    rejects: list[tuple[int, Reject]]
    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A sample with its picture decoded."""

    row: int
    sample: Sample
    image: Image.Image


def read_block(row: Row) -> Row:
    """Read one unit's samples; the first stage."""
    unit = Unit.from_dict(json.loads(row["unit"]))
    samples, rejects = read_unit(unit)
    wanted = json.loads(row["rows"])
    if wanted is not None:
        chosen = set(wanted)
        samples = [(number, sample) for number, sample in samples if number in chosen]
        rejects = []
    return {
        "unit": row["unit"],
        "numbers": json.dumps([number for number, _ in samples]),
        "samples": _to_bytes(samples_to_table(sample for _, sample in samples)),
        "rejects": _rejects_to_json(rejects),
    }


class UnitStage:
    """Base of a stage that works on one unit: unpack, decode, `work`, pack."""

    def work(self, samples: Sequence[Decoded]) -> Outcome:
        """Do the stage's work on the samples whose pictures could be decoded."""
        raise TypeError(f"{type(self).__name__} defines no work()")

    def __call__(self, row: Row) -> Row:
        """Map one packed unit to its packed outcome."""
        numbers = json.loads(row["numbers"])
        samples = table_to_samples(_from_bytes(row["samples"]))
        rejects = _rejects_from_json(row["rejects"])
        decoded = []
        for number, sample in zip(numbers, samples, strict=True):
            image = decode(sample.image)
            if isinstance(image, DecodeProblem):
                rejects.append((number, reject_of(sample, image.reason, image.detail)))
            else:
                decoded.append(Decoded(row=number, sample=sample, image=image))
        outcome = self.work(decoded)
        return {
            "unit": row["unit"],
            "table": _to_bytes(outcome.table),
            "rejects": _rejects_to_json(sorted([*rejects, *outcome.rejects], key=_row_of)),
            "counts": json.dumps({"samples": outcome.table.num_rows, **outcome.counts}),
            "sums": json.dumps(outcome.sums),
        }


def commit_block(row: Row, *, run_url: str, kind: str) -> Row:
    """Write one unit's columns and commit it; the last stage."""
    folder = RunFolder.at(run_url)
    unit = Unit.from_dict(json.loads(row["unit"]))
    table = _from_bytes(row["table"])
    file = folder.write_output(unit, kind, table_bytes(table), "parquet")
    rejects = [reject for _, reject in _rejects_from_json(row["rejects"])]
    folder.commit(unit, [file], json.loads(row["counts"]), rejects, json.loads(row["sums"]))
    reasons: dict[str, int] = {}
    for reject in rejects:
        reasons[reject.reason] = reasons.get(reject.reason, 0) + 1
    return {"done": table.num_rows + len(rejects), "reasons": json.dumps(reasons)}


def run_units(
    work: Sequence[Work],
    folder: RunFolder,
    *,
    kind: str,
    stage: type[UnitStage],
    stage_options: Mapping[str, Any],
    what: str,
    num_actors: int,
    cpus_per_actor: float,
    gpus_per_actor: float = 0.0,
) -> None:
    """Do every unit that is not committed yet.

    Args:
        work: All units of the run, done or not.
        folder: Where outputs and commits go.
        kind: Kind of output file.
        stage: The stage class; loads once per actor.
        stage_options: Its constructor's arguments.
        what: Name of the stage on the progress line.
        num_actors: Most actors; there is always at least one.
        cpus_per_actor: CPUs an actor claims. Together they must leave some for the other stages.
        gpus_per_actor: GPUs an actor claims.
    """
    import ray

    done = folder.done_units()
    todo = [item for item in work if item.unit.unit_id not in done]
    finished = sum(_size(item) for item in work if item.unit.unit_id in done)
    total = sum(_size(item) for item in work)
    if not todo:
        return
    import ray.data

    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [
        {
            "unit": json.dumps(item.unit.to_dict(), sort_keys=True),
            "rows": json.dumps(item.rows),
        }
        for item in todo
    ]
    blocks = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(read_block, num_cpus=0.1)
        .map(
            stage,
            fn_constructor_kwargs=dict(stage_options),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, num_actors)),
            num_cpus=cpus_per_actor,
            num_gpus=gpus_per_actor,
        )
        .map(commit_block, fn_kwargs={"run_url": folder.url, "kind": kind}, num_cpus=0.1)
    )
    with Progress(total, what, "samples", done=finished) as progress:
        for receipt in _receipts(blocks):
            progress.advance(int(receipt["done"]), json.loads(receipt["reasons"]))


def _receipts(blocks: Any) -> Iterator[Row]:
    yield from blocks.iter_rows()


def reject_of(sample: Sample, reason: str, detail: str) -> Reject:
    """Make the reject of a sample that was read but cannot be used."""
    return Reject(
        sample_id=sample.sample_id,
        source=sample.source,
        reason=reason,
        detail=detail,
        reference=sample.image_name,
    )


def _size(item: Work) -> int:
    return item.unit.count if item.rows is None else len(item.rows)


def _row_of(entry: tuple[int, Reject]) -> int:
    return entry[0]


def _rejects_to_json(rejects: Sequence[tuple[int, Reject]]) -> str:
    return json.dumps([[number, asdict(reject)] for number, reject in rejects])


def _rejects_from_json(text: str) -> list[tuple[int, Reject]]:
    return [(number, Reject(**fields)) for number, fields in json.loads(text)]


def _to_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
