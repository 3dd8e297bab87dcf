"""Join several runs over the same samples: scores, other scores, tags, views.

This is a merge join by unit and row in the order of the score run, without a lookup by sample id,
so only a few units of each run are in memory. In return, the runs must have split the same shards
into the same units; if they have not, the error message names the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest, load_parent
from consomme.base.suggest import did_you_mean
from consomme.pipelines.filter.inputs import KINDS, SOURCE, VIEW_VERBS, InputRuns
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.sidecar import ID_HASH, column_names, iter_columns
from consomme.storage.unit import Unit
from consomme.storage.view import View

_T = TypeVar("_T")


def sidecar_kind(manifest: Manifest, what: str) -> str:
    """Return the kind of a run's output files that hold columns.

    Raises:
        DataError: The run's verb writes none.
    """
    if manifest.verb in KINDS:
        return KINDS[manifest.verb]
    hint = "; a view goes under `views`" if manifest.verb in VIEW_VERBS else ""
    raise DataError(
        f"{what}: {manifest.url} is a {manifest.verb} run, expected a run of"
        f" {' or '.join(KINDS)}{hint}"
    )


def joined_columns(runs: InputRuns, columns: Sequence[str]) -> Iterator[tuple[Unit, pa.Table]]:
    """Yield each unit of the scores with columns of all runs, in the order of unit ids.

    Args:
        runs: The runs.
        columns: Names as policies use them: `perplexity`, `large.perplexity`, `unique`.

    Returns:
        Tables with `row`, `id_hash` and the columns, one line per scored sample. A value that
        another run lacks, because it rejected the sample, is null; a view is 1.0 or 0.0.

    Raises:
        DataError: A run is missing, unfinished or of another kind, has no such column, was split
            into other units, or is about other samples.
    """
    runs.check()
    main = load_manifest(runs.scores)
    kind = sidecar_kind(main, "scores")
    own, by_run, views = _assign(runs, columns, column_names(runs.scores, kind))
    joins: list[_RunColumns | _ViewColumn] = []
    for name, names in by_run.items():
        joins.append(_RunColumns(name, load_manifest(runs.columns_from[name]), main, names))
    joins += [_ViewColumn(name, load_manifest(runs.views[name]), main) for name in views]
    for record, table in iter_columns(runs.scores, [*own, ID_HASH], kind, with_ids=False):
        for join in joins:
            table = join.join(record.unit, table)
        yield record.unit, table
    for join in joins:
        join.cursor.end()


def _assign(
    runs: InputRuns, columns: Sequence[str], known: Sequence[str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Split columns into those of the scores, of other runs by name, and views."""
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
        known_there = column_names(manifest.url, sidecar_kind(manifest, f"columns_from.{name}"))
        for column in names:
            if column not in known_there:
                raise DataError(
                    f"columns_from.{name}: {manifest.url}: no column {column}"
                    f"{did_you_mean(column, known_there)}; found {', '.join(known_there)}"
                )
    return own, by_run, views


def _unknown(column: str, runs: InputRuns, known: Sequence[str]) -> str:
    choices = [*known, SOURCE, *runs.views]
    text = f"{runs.scores}: no column {column}{did_you_mean(column, choices)}"
    name, dot, _ = column.partition(".")
    if dot:
        near = did_you_mean(name, runs.columns_from)
        text += f"; `columns_from` has no run {name!r}{near}; add columns_from: {{{name}: FOLDER}}"
    return f"{text}; found {', '.join(choices)}"


class _MergeCursor(Generic[_T]):
    """Advances through another run's units in step with the units of the scores."""

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
        """Return the other run's content for a unit; None if the run did not process the unit."""
        while self.next is not None and self.next[0].unit_id < unit.unit_id:
            self._skip_extra()
        if self.next is None or self.next[0].unit_id != unit.unit_id:
            if not _reads_view(self.other):
                raise self._differ(f"{unit.unit_id} of the scores is not there")
            return None
        other, content = self.next
        if (other.start, other.count) != (unit.start, unit.count):
            raise self._differ(
                f"{unit.unit_id} has {other.count:,} rows there and {unit.count:,} in the scores"
            )
        self.next = next(self.units, None)
        return content

    def end(self) -> None:
        """Check the units that are left."""
        while self.next is not None:
            self._skip_extra()

    def _skip_extra(self) -> None:
        """Skip a unit that the scores lack, which is an error unless they were made of a view."""
        assert self.next is not None
        if not _reads_view(self.scores):
            raise self._differ(f"{self.next[0].unit_id} is there and not in the scores")
        self.next = next(self.units, None)

    def _differ(self, why: str) -> DataError:
        return DataError(
            f"{self.what}: {self.other.url} was split into other units than the scores: {why}. Make"
            " both runs on the same inputs with the same unit_rows; the scores have"
            f" {_split_by(self.scores)}, {self.what} has {_split_by(self.other)}"
        )


class _RunColumns:
    """Joins columns of another run's sidecars to the scores."""

    def __init__(
        self, name: str, other: Manifest, scores: Manifest, columns: Sequence[str]
    ) -> None:
        self.name, self.columns = name, columns
        self.url = other.url
        kind = sidecar_kind(other, f"columns_from.{name}")
        records = iter_columns(other.url, [*columns, ID_HASH], kind, with_ids=False)
        units = ((record.unit, table) for record, table in records)
        self.cursor = _MergeCursor(f"columns_from.{name}", other, scores, units)

    def join(self, unit: Unit, table: pa.Table) -> pa.Table:
        """Add the columns to a unit's table; null where the other run has no such row."""
        other_table = self.cursor.at(unit)
        if other_table is None:
            for column in self.columns:
                table = table.append_column(f"{self.name}.{column}", pa.nulls(table.num_rows))
            return table
        row_N, other_rows = table["row"].to_numpy(), other_table["row"].to_numpy()
        if not np.array_equal(row_N, other_rows):
            index_of_row = np.full(unit.count, -1, np.int64)
            index_of_row[other_rows] = np.arange(len(other_rows))
            index_N = index_of_row[row_N]
            other_table = other_table.take(pa.array(index_N, mask=index_N < 0))
        self._check_ids(unit, table, other_table)
        for column in self.columns:
            table = table.append_column(f"{self.name}.{column}", other_table[column])
        return table

    def _check_ids(self, unit: Unit, table: pa.Table, other_table: pa.Table) -> None:
        """Check that both runs have the same sample in each row."""
        other_ids = other_table[ID_HASH]
        is_joined_N = np.asarray(other_ids.is_valid())
        differs_N = np.asarray(other_ids.fill_null(0)) != table[ID_HASH].to_numpy()
        if (is_joined_N & differs_N).any():
            row = int(table["row"].to_numpy()[is_joined_N & differs_N][0])
            raise DataError(
                f"columns_from.{self.name}: {self.url} is about other samples than the scores:"
                f" row {row}"
                f" of {unit.unit_id} has another id there. The shards changed between the runs;"
                " make both on the same data"
            )


class _ViewColumn:
    """Joins a view to the scores as a column of ones and zeros."""

    def __init__(self, name: str, other: Manifest, scores: Manifest) -> None:
        self.name = name
        if other.verb not in VIEW_VERBS:
            hint = "; columns are read by `columns_from`" if other.verb in KINDS else ""
            raise DataError(
                f"views.{name}: {other.url} is a {other.verb} run, expected a run of"
                f" {' or '.join(VIEW_VERBS)}{hint}"
            )
        self.cursor = _MergeCursor(f"views.{name}", other, scores, View.iter_entries(other.url))

    def join(self, unit: Unit, table: pa.Table) -> pa.Table:
        """Add the column to a unit's table."""
        bitmap = self.cursor.at(unit)
        bits: NDArray[np.uint8] = np.zeros(unit.count, np.uint8)
        if bitmap is not None:
            bits = np.unpackbits(
                np.frombuffer(bitmap, np.uint8), count=unit.count, bitorder="little"
            )
        is_in_N = bits[table["row"].to_numpy()].astype(np.float32)
        return table.append_column(self.name, pa.array(is_in_N))


def _reads_view(manifest: Manifest) -> bool:
    """Whether a run processed only the units of a view, which leaves out units without samples."""
    recipe = manifest.recipe
    if recipe.get("view"):
        return True
    before = _read_run(manifest, "scores" if manifest.verb == "filter" else "hashes")
    return before is not None and _reads_view(before)


def _read_run(manifest: Manifest, key: str) -> Manifest | None:
    """Return the run that a key of a run's recipe names, wherever it lies now."""
    mark = manifest.inputs.get(key, "")
    for parent in manifest.parents:
        if mark and mark.startswith(parent.fingerprint):
            return load_parent(manifest, parent, load_manifest)
    # A run of an earlier version.
    url = manifest.recipe.get(key)
    return load_manifest(str(url)) if url else None


def _split_by(manifest: Manifest) -> str:
    """Describe the recipe keys that determined a run's units."""
    recipe = manifest.recipe
    keys = ("inputs", "source", "sources", "unit_rows", "view", "scores", "hashes")
    stats = [f"{key} {recipe[key]}" for key in keys if recipe.get(key)]
    return ", ".join(stats) or "none of its own"
