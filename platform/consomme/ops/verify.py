"""Prove that a run is complete and uncorrupted, or say exactly what is wrong.

Checked are: every planned unit has exactly one record and no other unit has one; each record
accounts for every row of its unit; every file it names is there with its size, its checksum and its
number of rows; nothing else lies beside them; the manifest says the same totals.
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

_READERS = 16
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class VerifyProblem:
    """One thing that is wrong."""

    unit_id: str
    """The unit it concerns; empty if it is the run as a whole."""

    text: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What verification found."""

    url: str
    num_units: int
    num_files: int
    num_bytes: int
    problems: tuple[VerifyProblem, ...]
    is_closed: bool


def verify(url: str, *, checksums: bool = True) -> VerifyReport:
    """Check a run; see the module.

    Args:
        url: The run folder.
        checksums: Read every output and compare; without, only existence and sizes are checked.

    Raises:
        DataError: There is no such run, or it has not finished.
    """
    folder = RunFolder.at(url)
    manifest = folder.manifest()
    problems: list[VerifyProblem] = []
    try:
        lineage(manifest, load_manifest)
    except DataError as error:
        problems.append(VerifyProblem(unit_id="", text=f"a run it was made from: {error}"))
    entry = attempts.latest(folder.store)
    if not entry.number:
        # Runs that are one piece, such as a filter: the manifest is the record.
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
    planned = _planned(folder.store)
    sizes = {
        file.path: file.size
        for top in attempts.OUTPUTS
        for file in list_parallel(folder.store, top)
    }
    totals: dict[str, int] = {}
    num_units = num_files = num_bytes = 0
    last = ""
    records = folder.iter_commits()
    with ThreadPoolExecutor(_READERS) as pool:
        while chunk := list(islice(records, 64 * _READERS)):
            for record in chunk:
                num_units += 1
                if record.unit_id == last:
                    problems.append(VerifyProblem(unit_id=last, text="the unit is recorded twice"))
                last = record.unit_id
                problems += _check_counts(record, planned)
                for key, number in record.counts.items():
                    totals[key] = totals.get(key, 0) + number
            found = pool.map(lambda r: _check_files(folder.store, r, sizes, checksums), chunk)
            for record, bad in zip(chunk, found, strict=True):
                problems += bad
                num_files += len(record.files)
                num_bytes += sum(file.num_bytes for file in record.files)
                for file in record.files:
                    sizes.pop(file.path, None)
    problems += [
        VerifyProblem(unit_id=unit, text="the unit has no record") for unit in sorted(planned)
    ]
    problems += [VerifyProblem(unit_id="", text=f"{path} is named by no record") for path in sizes]
    # What a filter counts is its input; its ledger holds the copies.
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


def redo_damaged(url: str, verdict: VerifyReport) -> int:
    """Open a run again without its damaged units, so that the next run of its recipe redoes them.

    Returns:
        How many units will be done again.
    """
    folder = RunFolder.at(url)
    bad = {problem.unit_id for problem in verdict.problems if problem.unit_id}
    attempts.reopen(folder.store, bad)
    folder.store.delete("manifest.json")
    return len(bad)


def verify_run(url: str, *, checksums: bool = True, repair: bool = False) -> str:
    """Verify a run and say so.

    Raises:
        DataError: Something is wrong; lists it.
    """
    verdict = verify(url, checksums=checksums)
    if not verdict.problems:
        how = "sizes and checksums" if checksums else "sizes"
        return (
            f"{verdict.url}: complete and uncorrupted: {verdict.num_units:,} units,"
            f" {verdict.num_files:,} files, {verdict.num_bytes:,} bytes ({how} checked)"
        )
    lines = [
        f"\n  - {problem.unit_id + ': ' if problem.unit_id else ''}{problem.text}"
        for problem in verdict.problems[:_SHOWN]
    ]
    more = len(verdict.problems) - len(lines)
    text = f"{verdict.url}: {len(verdict.problems):,} problems" + "".join(lines)
    text += f"\n  and {more:,} more" if more > 0 else ""
    if not repair:
        raise DataError(
            f"{text}\nTo do the damaged units again: consomme verify {verdict.url} repair=true,"
            " then run the recipe again"
        )
    number = redo_damaged(url, verdict)
    return f"{text}\nThe run is open again; run its recipe to do {number:,} units anew"


def _planned(store: Store) -> dict[str, int]:
    """Rows wanted of each planned unit."""
    plan = Plan.load(store)
    if plan is None:
        raise DataError(f"{store.url}: the plan is gone; completeness cannot be proved")
    return {
        work.unit.unit_id: work.num_rows
        for part in plan.parts
        for work in read_part(store, part.path)
    }


def _check_counts(record: CommitRecord, planned: dict[str, int]) -> Iterator[VerifyProblem]:
    wanted = planned.pop(record.unit_id, None)
    rows = record.counts.get("samples", 0) + record.counts.get("rejected", 0)
    if wanted is None:
        yield VerifyProblem(unit_id=record.unit_id, text="the unit is recorded but not planned")
    elif rows != wanted:
        yield VerifyProblem(unit_id=record.unit_id, text=f"{rows} rows are recorded of {wanted}")


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
        yield f"{file.path} is not what was written: its checksum differs"
        return
    if file.kind == "rejects":
        rows, wanted = data.count(b"\n"), record.counts.get("rejected", 0)
    elif not file.path.endswith(".parquet"):
        return
    else:
        try:
            rows = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
        except pa.ArrowException as error:
            yield f"{file.path} is not readable: {error}"
            return
        wanted = record.counts.get("samples", 0)
    if rows != wanted:
        yield f"{file.path} has {rows} rows, recorded {wanted}"


def _check_outputs(store: Store, outputs: Mapping[str, str]) -> Iterator[VerifyProblem]:
    for what, path in outputs.items():
        if next(store.list(str(path)), None) is None:
            yield VerifyProblem(unit_id="", text=f"{what} ({path}) is missing")
