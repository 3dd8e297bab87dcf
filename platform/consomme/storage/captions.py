"""Read samples with the captions of a recaption run.

New captions are stored in sidecars, by unit and row, and replace the old ones when a unit is read.
So a round of recaptioning copies no image, and any stage can read the samples of any round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from consomme.base.errors import DataError
from consomme.base.hashing import hash_ids
from consomme.base.sample import Reject, Sample, Turn, turn_from_json, turn_to_json
from consomme.base.sample_tables import (
    MANY_IMAGES_SCHEMA,
    SAMPLE_SCHEMA,
    turn_from_message,
    turn_to_message,
)
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.moved import MovedShards
from consomme.storage.plan import Plan, read_part
from consomme.storage.sidecar import read_unit_columns
from consomme.storage.unit import ReadUnit, Unit
from consomme.storage.units import read_unit

CAPTIONS = "captions"
"""Kind of the sidecar files of a recaption run."""

CAPTION_BEFORE = "consomme_caption_before"
"""Key of `meta` for the previous caption of a sample; only in memory."""


TURNS, MESSAGES = "turns", "messages"
"""Columns that hold the turns: `turns` if they are texts and all answers are learned; otherwise
`messages`, which only files with such samples have."""


def turns_columns(samples: Sequence[Sequence[Turn]]) -> dict[str, pa.Array]:
    """Return the columns that hold the turns of some samples; in each, one of them is null."""
    is_plain = [
        all(isinstance(turn.content, str) and turn.is_labelled for turn in turns)
        for turns in samples
    ]
    pairs = list(zip(samples, is_plain, strict=True))
    texts = [[turn_to_json(turn) for turn in turns] if plain else None for turns, plain in pairs]
    columns = {TURNS: pa.array(texts, SAMPLE_SCHEMA.field("turns").type)}
    if not all(is_plain):
        messages = [
            None if plain else [turn_to_message(turn) for turn in turns] for turns, plain in pairs
        ]
        columns[MESSAGES] = pa.array(messages, MANY_IMAGES_SCHEMA.field("messages").type)
    return columns


@dataclass(frozen=True, kw_only=True)
class RecaptionReader:
    """Reads units and replaces the turns of samples by those of a recaption run."""

    run: str
    """Folder of the finished recaption run."""

    only_new: bool = False
    """Whether to leave out samples without a new caption."""

    read: ReadUnit = read_unit
    """Reads the original unit."""

    def __call__(self, unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
        """Read one unit.

        Raises:
            DataError: The run recaptioned other samples.
        """
        samples, rejects = self.read(unit)
        names = [TURNS, "is_new", "parent_caption"]
        table = read_unit_columns(
            RunFolder.at(self.run), unit.unit_id, names, CAPTIONS, optional=[MESSAGES]
        )
        rows = {row["row"]: row for row in table.to_pylist()} if table is not None else {}
        recaptioned = []
        for number, sample in samples:
            row = rows.get(number)
            if row is None or not row["is_new"]:
                if not self.only_new:
                    unchanged = sample if row is None else _with_stored_turns(sample, row)
                    recaptioned.append((number, unchanged))
                continue
            if row["sample_id"] != sample.sample_id:
                raise DataError(
                    f"{self.run}: row {number} of unit {unit.unit_id} is {row['sample_id']!r}"
                    f" there and {sample.sample_id!r} in {unit.shard}; the shard changed after it"
                    " was recaptioned, so recaption it again"
                )
            recaptioned.append((number, _with_stored_turns(sample, row)))
        return recaptioned, rejects


def stored_turns(run: RunFolder, unit_id: str) -> dict[int, tuple[Turn, ...]]:
    """Return the turns of a unit of a finished run: row -> turns."""
    table = read_unit_columns(run, unit_id, [TURNS], CAPTIONS, optional=[MESSAGES])
    return {} if table is None else {row["row"]: _turns_of(row) for row in table.to_pylist()}


def _turns_of(row: dict[str, Any]) -> tuple[Turn, ...]:
    messages = row.get(MESSAGES)
    if messages is None:
        return tuple(turn_from_json(turn) for turn in row[TURNS])
    return tuple(turn_from_message(message) for message in messages)


def _with_stored_turns(sample: Sample, row: dict[str, Any]) -> Sample:
    meta = {**sample.meta, CAPTION_BEFORE: row["parent_caption"]}
    return replace(sample, turns=_turns_of(row), meta=meta)


def unit_reader(run: str | None, *, only_new: bool = False) -> ReadUnit:
    """Return a reader of units: plain if `run` is None, else with the captions of that run.

    Raises:
        DataError: `run` is not a finished recaption run.
    """
    if run is None:
        return read_unit
    manifest = load_manifest(run)
    if manifest.verb != "recaption":
        raise DataError(f"captions: {run} is a {manifest.verb} run, expected a recaption run")
    return RecaptionReader(run=run, only_new=only_new)


def check_units(run: str | None, unit_ids: Iterable[str]) -> None:
    """Refuse a recaption run with other units, whose captions would match no sample.

    Args:
        run: The recaption run; None is always accepted.
        unit_ids: Ids of the units to be read.

    Raises:
        DataError: The run has a unit that is not in `unit_ids`.
    """
    if run is None:
        return
    known = np.sort(hash_ids(unit_ids))
    for record in RunFolder.at(run).iter_commits():
        id_hash = hash_ids([record.unit_id])[0]
        index = int(np.searchsorted(known, id_hash))
        if index == len(known) or known[index] != id_hash:
            raise DataError(
                f"captions: {run} has the unit {record.unit_id} ({record.unit.count} samples of"
                f" {record.unit.shard}), which is not a unit here; give the same inputs,"
                " source, unit_rows and reading as in that run"
            )


def planned_units(folder: RunFolder, plan: Plan) -> Iterator[Unit]:
    """Yield the units of a run's plan."""
    for part in plan.parts:
        yield from (work.unit for work in read_part(folder.store, part.path))


def recaptioned_units(run: str, shards: Sequence[str]) -> list[Unit]:
    """Return the units into which a recaption run split some shards.

    Raises:
        DataError: It recaptioned other shards, or a view.
    """
    folder = RunFolder.at(run)
    plan = Plan.load(folder.store)
    moved = MovedShards(folder)
    units = [moved.unit(unit) for unit in planned_units(folder, plan)] if plan else []
    if {unit.shard for unit in units} != set(shards) or load_manifest(run).recipe.get("view"):
        raise DataError(
            f"captions: {run} recaptioned a view, or other shards than these {len(shards)}; give"
            " the same inputs, or the same view, as in that run"
        )
    return units
