"""Verify that a run is complete and uncorrupted, or list what is wrong.

Checks: every planned unit has exactly one record, and no other unit has one; each record accounts
for every row of its unit; every file named by a record exists with the recorded size, checksum and
number of rows; there are no other files; the manifest has the same totals.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.base.manifest import lineage
from consomme.storage.ledger import attempts
from consomme.storage.ledger.commits import CommitRecord, OutputFile
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.plan import Plan, read_part
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.store import Store

_READ_THREADS = 16
_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class VerifyProblem:
    """One thing that is wrong."""

    unit_id: str
    """The affected unit; empty if the problem concerns the whole run."""

    text: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of a verification."""

    url: str
    num_units: int
    num_files: int
    num_bytes: int
    problems: tuple[VerifyProblem, ...]
    is_closed: bool


def verify(url: str, *, checksums: bool = True) -> VerifyReport:
    """Verify a run; see the module docstring.

    Args:
        url: The run folder.
        checksums: Whether to read and compare every output file; if not, only existence and sizes
            are checked.

    Raises:
        DataError: The run does not exist or has not finished.
    """
    folder = RunFolder.at(url)
    manifest = folder.manifest()
    problems: list[VerifyProblem] = []
    try:
        lineage(manifest, load_manifest)
    except DataError as error:
        problems.append(VerifyProblem(unit_id="", text=f"a parent run: {error}"))
    entry = attempts.latest(folder.store)
    if not entry.number:
        # Runs without units, such as a filter: the manifest is the only record.
        problems += _check_outputs(folder.store, manifest.outputs)
        return VerifyReport(
            url=folder.url,
            num_units=0,
            num_files=len(manifest.outputs),
            num_bytes=0,
            problems=tuple(problems),
            is_closed=True,
        )
    if not entry.is_closed:
        problems.append(VerifyProblem(unit_id="", text="the ledger is not closed"))
    planned = _planned_rows(folder.store)
    sizes = {
        file.path: file.size
        for top in attempts.OUTPUTS
        for file in list_parallel(folder.store, top)
    }
    totals: dict[str, int] = {}
    num_units = num_files = num_bytes = 0
    last_id = ""
    records = folder.iter_commits()
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        while chunk := list(islice(records, 64 * _READ_THREADS)):
            for record in chunk:
                num_units += 1
                if record.unit_id == last_id:
                    text = "the unit is recorded twice"
                    problems.append(VerifyProblem(unit_id=last_id, text=text))
                last_id = record.unit_id
                problems += _check_counts(record, planned)
                for key, number in record.counts.items():
                    totals[key] = totals.get(key, 0) + number
            results = pool.map(lambda r: _check_files(folder.store, r, sizes, checksums), chunk)
            for record, file_problems in zip(chunk, results, strict=True):
                problems += file_problems
                num_files += len(record.files)
                num_bytes += sum(file.num_bytes for file in record.files)
                for file in record.files:
                    sizes.pop(file.path, None)
    problems += [
        VerifyProblem(unit_id=unit, text="the unit has no record") for unit in sorted(planned)
    ]
    problems += [VerifyProblem(unit_id="", text=f"{path} is named by no record") for path in sizes]
    # The counts of a filter are about its input; its ledger is about the copies.
    if "view" not in manifest.outputs and dict(manifest.counts) != totals:
        text = f"the manifest counts {dict(manifest.counts)}, the records {totals}"
        problems.append(VerifyProblem(unit_id="", text=text))
    return VerifyReport(
        url=folder.url,
        num_units=num_units,
        num_files=num_files,
        num_bytes=num_bytes,
        problems=tuple(problems),
        is_closed=entry.is_closed,
    )


def redo_damaged(url: str, result: VerifyReport) -> int:
    """Reopen a run without its damaged units, so that the next run of its recipe redoes them.

    Returns:
        Number of units to be redone.
    """
    folder = RunFolder.at(url)
    damaged = {problem.unit_id for problem in result.problems if problem.unit_id}
    attempts.reopen(folder.store, damaged)
    folder.store.delete("manifest.json")
    return len(damaged)


def verify_run(url: str, *, checksums: bool = True, repair: bool = False) -> str:
    """Verify a run and return the result as text.

    Raises:
        DataError: The run has problems and `repair` is false; the message lists them.
    """
    result = verify(url, checksums=checksums)
    if not result.problems:
        how = "sizes and checksums" if checksums else "sizes"
        return (
            f"{result.url}: complete and uncorrupted: {result.num_units:,} units,"
            f" {result.num_files:,} files, {result.num_bytes:,} bytes ({how} checked)"
        )
    lines = [
        f"\n  - {problem.unit_id + ': ' if problem.unit_id else ''}{problem.text}"
        for problem in result.problems[:_MAX_LISTED]
    ]
    more = len(result.problems) - len(lines)
    text = f"{result.url}: {len(result.problems):,} problems" + "".join(lines)
    text += f"\n  and {more:,} more" if more > 0 else ""
    if not repair:
        raise DataError(
            f"{text}\nTo redo the damaged units: consomme verify {result.url} repair=true,"
            " then run the recipe again"
        )
    number = redo_damaged(url, result)
    return f"{text}\nThe run is reopened; run its recipe again to redo {number:,} units"


def _planned_rows(store: Store) -> dict[str, int]:
    """Number of selected rows of each planned unit, by unit id."""
    plan = Plan.load(store)
    if plan is None:
        raise DataError(f"{store.url}: the plan is missing; completeness cannot be verified")
    return {
        work.unit.unit_id: work.num_rows
        for part in plan.parts
        for work in read_part(store, part.path)
    }


def _check_counts(record: CommitRecord, planned: dict[str, int]) -> Iterator[VerifyProblem]:
    expected = planned.pop(record.unit_id, None)
    rows = record.counts.get("samples", 0) + record.counts.get("rejected", 0)
    if expected is None:
        yield VerifyProblem(unit_id=record.unit_id, text="the unit is recorded but not planned")
    elif rows != expected:
        yield VerifyProblem(unit_id=record.unit_id, text=f"{rows} of {expected} rows are recorded")


def _check_files(
    store: Store, record: CommitRecord, sizes: dict[str, int], checksums: bool
) -> list[VerifyProblem]:
    texts = []
    for file in record.files:
        if file.path not in sizes:
            texts.append(f"{file.path} is missing")
        elif sizes[file.path] != file.num_bytes:
            texts.append(f"{file.path} has {sizes[file.path]} bytes, recorded {file.num_bytes}")
        elif checksums:
            texts += _check_content(store, record, file)
    return [VerifyProblem(unit_id=record.unit_id, text=text) for text in texts]


def _check_content(store: Store, record: CommitRecord, file: OutputFile) -> Iterator[str]:
    data = store.read(file.path)
    if sha256(data).hexdigest() != file.sha256:
        yield f"{file.path} was changed: its checksum differs"
        return
    if file.kind == "rejects":
        rows, expected = data.count(b"\n"), record.counts.get("rejected", 0)
    elif not file.path.endswith(".parquet"):
        return
    else:
        try:
            rows = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
        except pa.ArrowException as error:
            yield f"{file.path} is not readable: {error}"
            return
        expected = record.counts.get("samples", 0)
    if rows != expected:
        yield f"{file.path} has {rows} rows, recorded {expected}"


def _check_outputs(store: Store, outputs: Mapping[str, str]) -> Iterator[VerifyProblem]:
    for name, path in outputs.items():
        if next(store.list(str(path)), None) is None:
            yield VerifyProblem(unit_id="", text=f"{name} ({path}) is missing")
