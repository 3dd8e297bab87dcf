"""Finished runs with hand-made columns and views, for tests of their readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from consomme.base.schema import runtime
from consomme.execution.runs import Run
from consomme.execution.worker import with_id_hash
from consomme.pipelines.filter.inputs import KINDS
from consomme.storage.sidecar import table_bytes
from consomme.storage.unit import Unit
from consomme.storage.view import View


@dataclass(frozen=True, kw_only=True)
class HandRecipe:
    """Provenance in the manifest of such a run."""

    name: str
    inputs: tuple[str, ...] = ("pairs.tar",)
    unit_rows: int = 1024
    view: str | None = None
    remark: str = ""
    root: str = runtime("runs")


def unit_of(number: int, count: int, source: str = "web") -> Unit:
    """A unit of a shard that does not exist."""
    return Unit(
        unit_id=f"{source}-{number:04d}",
        source=source,
        shard=f"/nowhere/{number:04d}.tar",
        start=0,
        count=count,
        num_bytes=1,
    )


def write_run(verb: str, recipe: HandRecipe, parts: Sequence[tuple[Unit, pa.Table]]) -> str:
    """Write a finished run of columns; tables have `row` and `sample_id`."""
    opened = Run.open(verb, recipe, None)
    opened.start()
    folder, number = opened.folder, opened.folder.start_attempt()
    for unit, table in parts:
        data = table_bytes(with_id_hash(table, unit.source))
        file = folder.write_output(unit, KINDS[verb], data, "parquet")
        folder.commit(number, unit, [file], {"samples": table.num_rows})
    folder.close(number)
    return opened.finish(counts={"samples": sum(t.num_rows for _, t in parts)}).url


def write_view(
    verb: str, recipe: HandRecipe, units: Sequence[Unit], rows: Mapping[str, Sequence[int]]
) -> str:
    """Write a finished run with a view."""
    opened = Run.open(verb, recipe, None)
    opened.start()
    path = View.from_rows(units, rows).save(opened.folder)
    return opened.finish(outputs={"view": path}).url
