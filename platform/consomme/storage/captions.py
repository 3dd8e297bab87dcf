"""Samples as a recaption run left them: the same pictures, with newer words.

One decision is made here: newer captions stay beside the samples, by unit and row, and are put in
place when a unit is read. So a round of recaptioning copies no picture, and any stage can read the
samples of any round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from consomme.base.errors import DataError
from consomme.base.hashing import hash_ids
from consomme.base.sample import Reject, Sample, Turn
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.plan import Plan, read_part
from consomme.storage.sidecar import read_unit_columns
from consomme.storage.unit import ReadUnit, Unit
from consomme.storage.units import read_unit

CAPTIONS = "captions"
"""Kind of the output files of a recaption run."""

CAPTION_BEFORE = "consomme_caption_before"
"""Key of `meta`, while a unit is worked on, under which the sample's older caption is."""


@dataclass(frozen=True, kw_only=True)
class RecaptionReader:
    """Reads units and gives samples the turns that a recaption run stored for them."""

    run: str
    """Folder of the finished recaption run."""

    only_new: bool = False
    """Leave out samples that got no new caption."""

    read: ReadUnit = read_unit
    """Reads the unit as it was before."""

    def __call__(self, unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
        """Read one unit.

        Raises:
            DataError: The run is about other samples.
        """
        samples, rejects = self.read(unit)
        names = ["turns", "is_new", "parent_caption"]
        table = read_unit_columns(RunFolder.at(self.run), unit.unit_id, names, CAPTIONS)
        rows = {row["row"]: row for row in table.to_pylist()} if table is not None else {}
        found = []
        for number, sample in samples:
            row = rows.get(number)
            if row is None or not row["is_new"]:
                if not self.only_new:
                    found.append((number, sample if row is None else _renewed(sample, row)))
                continue
            if row["sample_id"] != sample.sample_id:
                raise DataError(
                    f"{self.run}: row {number} of unit {unit.unit_id} is {row['sample_id']!r}"
                    f" there and {sample.sample_id!r} in {unit.shard}; the shard changed since it"
                    " was recaptioned, so recaption it again"
                )
            found.append((number, _renewed(sample, row)))
        return found, rejects


def _renewed(sample: Sample, row: dict[str, Any]) -> Sample:
    turns = tuple(Turn(role=turn["role"], content=turn["content"]) for turn in row["turns"])
    meta = {**sample.meta, CAPTION_BEFORE: row["parent_caption"]}
    return replace(sample, turns=turns, meta=meta)


def unit_reader(run: str | None, *, only_new: bool = False) -> ReadUnit:
    """Choose how units are read: as they are, or with the captions of a run.

    Raises:
        DataError: It is no finished recaption run.
    """
    if run is None:
        return read_unit
    manifest = load_manifest(run)
    if manifest.verb != "recaption":
        raise DataError(f"captions: {run} is a {manifest.verb} run, expected a recaption run")
    return RecaptionReader(run=run, only_new=only_new)


def check_units(run: str | None, unit_ids: Iterable[str]) -> None:
    """Refuse a run of captions that cut the data into other units: they would find nobody.

    Args:
        run: The recaption run; None passes.
        unit_ids: The units that are to be read.

    Raises:
        DataError: The run has a unit that is not among them.
    """
    if run is None:
        return
    known = np.sort(hash_ids(unit_ids))
    for record in RunFolder.at(run).iter_commits():
        mark = hash_ids([record.unit_id])[0]
        at = int(np.searchsorted(known, mark))
        if at == len(known) or known[at] != mark:
            raise DataError(
                f"captions: {run} has the unit {record.unit_id} ({record.unit.count} samples of"
                f" {record.unit.shard}), which is not cut like that here; give the same inputs,"
                " source and unit_rows as there"
            )


def planned_units(folder: RunFolder, plan: Plan) -> Iterator[Unit]:
    """Yield the units of a run's plan."""
    for part in plan.parts:
        yield from (work.unit for work in read_part(folder.store, part.path))


def recaptioned_units(run: str, shards: Sequence[str]) -> list[Unit]:
    """Return the units into which a recaption run cut some shards.

    Raises:
        DataError: It is about other shards, or about a view.
    """
    folder = RunFolder.at(run)
    plan = Plan.load(folder.store)
    units = list(planned_units(folder, plan)) if plan else []
    if {unit.shard for unit in units} != set(shards) or load_manifest(run).recipe.get("view"):
        raise DataError(
            f"captions: {run} recaptioned a view, or other shards than these {len(shards)}; give"
            " the same inputs, or the view, as there"
        )
    return units
