"""Read several runs over the same samples side by side: scores, other scores, tags, views.

One decision is made here: runs are joined by unit and row, at the pace of the scores, and never
looked up by name. So nothing is held but a few units of each run; in return the runs must have cut
the same shards into the same units, and where they have not, the message says who did what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.suggest import did_you_mean
from consomme.pipelines.filter.inputs import KINDS, SOURCE, VIEW_VERBS, Runs
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.sidecar import ID_HASH, column_names, iter_columns
from consomme.storage.unit import Unit
from consomme.storage.view import View

_T = TypeVar("_T")


def sidecar_kind(manifest: Manifest, what: str) -> str:
    """Tell what a run calls its files with columns.

    Raises:
        DataError: It is a run that has none.
    """
    if manifest.verb in KINDS:
        return KINDS[manifest.verb]
    hint = "; a view goes under `views`" if manifest.verb in VIEW_VERBS else ""
    raise DataError(
        f"{what}: {manifest.url} is a {manifest.verb} run, expected a run of"
        f" {' or '.join(KINDS)}{hint}"
    )


def joined_columns(runs: Runs, columns: Sequence[str]) -> Iterator[tuple[Unit, pa.Table]]:
    """Yield each unit of the scores with columns of all runs, in the order of unit ids.

    Args:
        runs: The runs.
        columns: Names as policies say them: `perplexity`, `large.perplexity`, `unique`.

    Returns:
        Tables with `row`, `id_hash` and the columns, a line for each scored sample. What another
        run has not, because the sample was rejected there, is null; a view is 1.0 or 0.0.

    Raises:
        DataError: A run is missing, unfinished or of another kind, has no such column, was cut into
            other units, or is about other samples.
    """
    runs.check()
    main = load_manifest(runs.scores)
    kind = sidecar_kind(main, "scores")
    own, by_run, views = _assign(runs, columns, column_names(runs.scores, kind))
    sides: list[_Columns | _Bits] = []
    for name, names in by_run.items():
        sides.append(_Columns(name, load_manifest(runs.columns_from[name]), main, names))
    sides += [_Bits(name, load_manifest(runs.views[name]), main) for name in views]
    for record, table in iter_columns(runs.scores, [*own, ID_HASH], kind, with_ids=False):
        for side in sides:
            table = side.join(record.unit, table)
        yield record.unit, table
    for side in sides:
        side.pace.end()


def _assign(
    runs: Runs, columns: Sequence[str], known: Sequence[str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Say which columns are the scores' own, another run's, or views."""
    own: list[str] = []
    by_run: dict[str, list[str]] = {}
    views: list[str] = []
    for column in columns:
        name, dot, rest = column.partition(".")
        if column in runs.views:
            if column in known:
                raise RecipeError(
                    f"views.{column}: the scores have a column of this name; take another"
                )
            views.append(column)
        elif dot and name in runs.columns_from:
            by_run.setdefault(name, []).append(rest)
        elif column in known:
            own.append(column)
        else:
            raise DataError(_unknown(column, runs, known))
    for name, names in by_run.items():
        manifest = load_manifest(runs.columns_from[name])
        there = column_names(manifest.url, sidecar_kind(manifest, f"columns_from.{name}"))
        for column in names:
            if column not in there:
                raise DataError(
                    f"columns_from.{name}: {manifest.url}: no column {column}"
                    f"{did_you_mean(column, there)}; found {', '.join(there)}"
                )
    return own, by_run, views


def _unknown(column: str, runs: Runs, known: Sequence[str]) -> str:
    named = [*known, SOURCE, *runs.views]
    text = f"{runs.scores}: no column {column}{did_you_mean(column, named)}"
    name, dot, _ = column.partition(".")
    if dot:
        near = did_you_mean(name, runs.columns_from)
        text += f"; `columns_from` has no run {name!r}{near}; add columns_from: {{{name}: FOLDER}}"
    return f"{text}; found {', '.join(named)}"


class _MergeCursor(Generic[_T]):
    """Walks over another run's units as the scores' units come by."""

    def __init__(
        self,
        what: str,
        other: Manifest,
        scores: Manifest,
        units: Iterator[tuple[Unit, _T]],
    ) -> None:
        self.what, self.other, self.scores, self.units = what, other, scores, units
        self.next = next(units, None)

    def at(self, unit: Unit) -> _T | None:
        """Return what the other run has for a unit; None if it was not asked about the unit."""
        while self.next is not None and self.next[0].unit_id < unit.unit_id:
            self._only_there()
        if self.next is None or self.next[0].unit_id != unit.unit_id:
            if not _is_of_a_view(self.other):
                raise self._differ(f"{unit.unit_id} of the scores is not there")
            return None
        found, content = self.next
        if (found.start, found.count) != (unit.start, unit.count):
            raise self._differ(
                f"{unit.unit_id} has {found.count:,} rows there and {unit.count:,} in the scores"
            )
        self.next = next(self.units, None)
        return content

    def end(self) -> None:
        """Look at what is left."""
        while self.next is not None:
            self._only_there()

    def _only_there(self) -> None:
        assert self.next is not None
        if not _is_of_a_view(self.scores):
            raise self._differ(f"{self.next[0].unit_id} is there and not in the scores")
        self.next = next(self.units, None)

    def _differ(self, why: str) -> DataError:
        return DataError(
            f"{self.what}: {self.other.url} was cut into other units than the scores: {why}. Make"
            " both runs on the same inputs with the same unit_rows; the scores have"
            f" {_cut_by(self.scores)}, {self.what} has {_cut_by(self.other)}"
        )


class _Columns:
    """Joins columns of another run's sidecars."""

    def __init__(
        self, name: str, other: Manifest, scores: Manifest, columns: Sequence[str]
    ) -> None:
        self.name, self.columns = name, columns
        self.url = other.url
        kind = sidecar_kind(other, f"columns_from.{name}")
        records = iter_columns(other.url, [*columns, ID_HASH], kind, with_ids=False)
        units = ((record.unit, table) for record, table in records)
        self.pace = _MergeCursor(f"columns_from.{name}", other, scores, units)

    def join(self, unit: Unit, table: pa.Table) -> pa.Table:
        """Add the columns to a unit's table; null where the other run has no such row."""
        found = self.pace.at(unit)
        if found is None:
            for column in self.columns:
                table = table.append_column(f"{self.name}.{column}", pa.nulls(table.num_rows))
            return table
        row_N, there = table["row"].to_numpy(), found["row"].to_numpy()
        if not np.array_equal(row_N, there):
            place = np.full(unit.count, -1, np.int64)
            place[there] = np.arange(len(there))
            place_N = place[row_N]
            found = found.take(pa.array(place_N, mask=place_N < 0))
        self._check_ids(unit, table, found)
        for column in self.columns:
            table = table.append_column(f"{self.name}.{column}", found[column])
        return table

    def _check_ids(self, unit: Unit, table: pa.Table, found: pa.Table) -> None:
        """Refuse another sample in the same place."""
        there = found[ID_HASH]
        is_there_N = np.asarray(there.is_valid())
        other_N = np.asarray(there.fill_null(0)) != table[ID_HASH].to_numpy()
        if (is_there_N & other_N).any():
            row = int(table["row"].to_numpy()[is_there_N & other_N][0])
            raise DataError(
                f"columns_from.{self.name}: {self.url} is about other samples than the scores:"
                f" row {row}"
                f" of {unit.unit_id} has another id there. The shards changed between the runs;"
                " make both on the same data"
            )


class _Bits:
    """Joins a view as a column of ones and zeros."""

    def __init__(self, name: str, other: Manifest, scores: Manifest) -> None:
        self.name = name
        if other.verb not in VIEW_VERBS:
            hint = "; columns are read by `columns_from`" if other.verb in KINDS else ""
            raise DataError(
                f"views.{name}: {other.url} is a {other.verb} run, expected a run of"
                f" {' or '.join(VIEW_VERBS)}{hint}"
            )
        self.pace = _MergeCursor(f"views.{name}", other, scores, View.iter_entries(other.url))

    def join(self, unit: Unit, table: pa.Table) -> pa.Table:
        """Add the column to a unit's table."""
        bitmap = self.pace.at(unit)
        bits: NDArray[np.uint8] = np.zeros(unit.count, np.uint8)
        if bitmap is not None:
            bits = np.unpackbits(
                np.frombuffer(bitmap, np.uint8), count=unit.count, bitorder="little"
            )
        is_in_N = bits[table["row"].to_numpy()].astype(np.float32)
        return table.append_column(self.name, pa.array(is_in_N))


def _is_of_a_view(manifest: Manifest) -> bool:
    """Tell whether a run was asked about some units only: a view's, less those it keeps none of."""
    recipe = manifest.recipe
    if recipe.get("view"):
        return True
    before = recipe.get("scores") if manifest.verb == "filter" else recipe.get("hashes")
    return bool(before) and _is_of_a_view(load_manifest(str(before)))


def _cut_by(manifest: Manifest) -> str:
    """Say what decided a run's units."""
    recipe = manifest.recipe
    keys = ("inputs", "source", "sources", "unit_rows", "view", "scores", "hashes")
    stats = [f"{key} {recipe[key]}" for key in keys if recipe.get(key)]
    return ", ".join(stats) or "none of its own"
