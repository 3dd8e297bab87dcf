"""Verify that a run is complete and uncorrupted, or name each file that is not.

Every file of a run is checked: those that commit records name, by the records; all others by the
manifest, which has its own checksum; and the page `report.html` by the checksum in it. Of units,
every planned one has exactly one record, and no other unit has one; each record accounts for every
row of its unit; the manifest has the same totals. No other file is there. The stages of a loop and
the trials of a sweep are verified with it.

Runs of earlier versions have checksums of what records name only. Their other files are checked for
presence and form, and the result says so.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import ConsommeError, DataError
from consomme.base.manifest import (
    FileSum,
    Manifest,
    from_json,
    is_unchanged,
    lineage,
    load_parent,
)
from consomme.base.sealed import is_sealed
from consomme.ops.forms import form_problem
from consomme.storage.ledger import attempts
from consomme.storage.ledger.commits import CommitRecord, OutputFile
from consomme.storage.ledger.run_folder import MANIFEST, RunFolder, load_manifest
from consomme.storage.ledger.sums import LEFT_OUT, NOTES, REPORT, LedgerSummer, read_sum
from consomme.storage.plan import Plan, read_part
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.store import Store

_READ_THREADS = 16
CONTAINERS = ("loop", "sweep")
"""Verbs whose runs consist of other runs."""


@dataclass(frozen=True, kw_only=True)
class VerifyProblem:
    """One thing that is wrong."""

    unit_id: str
    """The affected unit; empty if the problem concerns the whole run."""

    text: str

    path: str = ""
    """The affected file in the run folder; empty if the problem concerns none, or more than one."""

    is_foreign: bool = False
    """Whether the file is there although the run did not write it."""

    is_elsewhere: bool = False
    """Whether it is another run that is wrong."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of a verification."""

    url: str
    num_units: int
    num_files: int
    """Files of units; of a run without units, all files."""

    num_bytes: int
    problems: tuple[VerifyProblem, ...]
    is_closed: bool

    num_others: int = 0
    """Files beside those of units."""

    unproved: tuple[str, ...] = ()
    """Files without a recorded checksum, as in runs of earlier versions; only their form was
    checked."""

    manifest: Manifest | None = None
    """None if it is not readable."""

    parts: tuple[VerifyReport, ...] = ()
    """The runs of a loop or sweep."""

    @property
    def everything(self) -> list[VerifyReport]:
        """This report and those of all parts."""
        return [self, *(one for part in self.parts for one in part.everything)]


def verify(url: str, *, checksums: bool = True) -> VerifyReport:
    """Verify a run; see the module docstring.

    Args:
        url: The run folder.
        checksums: Whether to read and compare every file; if not, only existence and sizes are
            checked.

    Raises:
        DataError: The run does not exist or has not finished.
    """
    return _verify(url, checksums, set())


def _verify(url: str, checksums: bool, seen: set[str]) -> VerifyReport:
    folder = RunFolder.at(url)
    check = _RunCheck(folder, checksums)
    check.run()
    parts: list[VerifyReport] = []
    seen.add(folder.url)
    manifest = check.manifest
    if manifest is not None and manifest.verb in CONTAINERS:
        for parent in manifest.parents:
            try:
                found = load_parent(manifest, parent, load_manifest)
            except DataError as error:
                check.add(f"a run of this {manifest.verb}: {error}", is_elsewhere=True)
                continue
            if found.url not in seen:
                parts.append(_verify(found.url, checksums, seen))
    elif manifest is not None:
        try:
            lineage(manifest, load_manifest)
        except DataError as error:
            check.add(f"a parent run: {error}", is_elsewhere=True)
    return dataclasses.replace(check.report(), parts=tuple(parts))


@dataclass
class _RunCheck:
    """The checks of one run."""

    folder: RunFolder
    checksums: bool
    manifest: Manifest | None = None
    problems: list[VerifyProblem] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    """Size of each file that nothing has named so far, by path."""

    unproved: list[str] = field(default_factory=list)
    num_units: int = 0
    num_files: int = 0
    num_bytes: int = 0
    num_others: int = 0
    is_closed: bool = True

    @property
    def store(self) -> Store:
        """The run folder."""
        return self.folder.store

    def add(self, text: str, path: str = "", unit_id: str = "", **flags: bool) -> None:
        """Add a problem."""
        self.problems.append(VerifyProblem(unit_id=unit_id, text=text, path=path, **flags))

    def run(self) -> None:
        """Do all checks."""
        data = _read_manifest(self.folder)
        last: list[str] = []
        try:
            self.manifest = from_json(data.decode(), self.folder.url, is_checked=False)
            if not is_unchanged(json.loads(data)):
                last.append(f"{MANIFEST} was changed: its checksum differs")
        except (DataError, UnicodeDecodeError) as error:
            last.append(f"{MANIFEST} is not readable: {error}")
        self.files = {file.path: file.size for file in list_parallel(self.store)}
        for path in [path for path in self.files if path.startswith(NOTES)]:
            del self.files[path]
        self._check_report()
        for path in LEFT_OUT:
            # What says how far a run has come changes until the end; only its form is known.
            if path not in (MANIFEST, REPORT) and path in self.files:
                text = form_problem(self.store, path)
                if text:
                    self.add(f"{path}: {text}", path)
            self.files.pop(path, None)
        has_ledger = self._has_ledger()
        if has_ledger:
            self._check_units()
        self._check_others(has_ledger)
        for text in last:
            self.add(text, MANIFEST)

    def report(self) -> VerifyReport:
        """Return the result."""
        return VerifyReport(
            url=self.folder.url,
            num_units=self.num_units,
            num_files=self.num_files if self.num_units else self.num_others,
            num_bytes=self.num_bytes,
            problems=tuple(self.problems),
            is_closed=self.is_closed,
            num_others=self.num_others,
            unproved=tuple(self.unproved),
            manifest=self.manifest,
        )

    def _has_ledger(self) -> bool:
        if self.manifest is not None and self.manifest.files:
            return self.manifest.ledger is not None
        # Trainings and sweeps have attempts too, but no units.
        has_plan = any(path.startswith("plan/") for path in self.files)
        verb = self.manifest.verb if self.manifest else ""
        return has_plan or (verb in _UNIT_VERBS and any(self.files_in("attempts/")))

    def files_in(self, folder: str) -> list[str]:
        """List the files below a folder that nothing has named so far."""
        return [path for path in self.files if path.startswith(folder)]

    def _check_report(self) -> None:
        """Check the page, which may be drawn again at any time, by the checksum in it."""
        if REPORT not in self.files:
            outputs = self.manifest.outputs.values() if self.manifest else ()
            if REPORT in outputs:
                self.add(f"{REPORT} is missing", REPORT)
            return
        self.num_others += 1
        if not self.checksums:
            return
        found = is_sealed(self.store.read(REPORT))
        if found is None and self.manifest is not None and self.manifest.files:
            found = False
        if found is None:
            self.unproved.append(REPORT)
        elif not found:
            self.add(f"{REPORT} was changed: its checksum differs", REPORT)

    def _check_units(self) -> None:
        """Check the ledger and the files that its records name."""
        try:
            entry = attempts.latest(self.store)
            self.is_closed = entry.is_closed
            if not entry.is_closed:
                self.add("the ledger is not closed")
            planned = self._planned_rows()
            self._check_records(planned)
        except ConsommeError as error:
            # The file itself is named by the check of files, if the manifest has its checksum.
            self.add(f"the ledger cannot be read: {error}")
            for folder in attempts.OUTPUTS:
                for path in self.files_in(folder):
                    del self.files[path]

    def _check_records(self, planned: dict[str, int] | None) -> None:
        totals: dict[str, int] = {}
        summer = LedgerSummer()
        last_id = ""
        records = self.folder.iter_commits()
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            while chunk := list(islice(records, 64 * _READ_THREADS)):
                for record in chunk:
                    summer.add(record)
                    self.num_units += 1
                    if record.unit_id == last_id:
                        self.add("the unit is recorded twice", unit_id=last_id)
                    last_id = record.unit_id
                    if planned is not None:
                        self.problems += _check_counts(record, planned)
                    for key, number in record.counts.items():
                        totals[key] = totals.get(key, 0) + number
                results = pool.map(
                    lambda r: _check_files(self.store, r, self.files, self.checksums), chunk
                )
                for record, file_problems in zip(chunk, results, strict=True):
                    self.problems += file_problems
                    self.num_files += len(record.files)
                    self.num_bytes += sum(file.num_bytes for file in record.files)
                    for file in record.files:
                        self.files.pop(file.path, None)
        for unit in sorted(planned or ()):
            self.add("the unit has no record", unit_id=unit)
        for folder in attempts.OUTPUTS:
            for path in self.files_in(folder):
                self.add(f"{path} is named by no record", path, is_foreign=True)
                del self.files[path]
        manifest = self.manifest
        if manifest is None:
            return
        # The counts of a filter are about its input; its ledger is about the copies.
        counts = dict(manifest.counts)
        if manifest.verb == "evaluate":
            # It counts models and benchmarks as well, of which records know nothing.
            counts = {name: number for name, number in counts.items() if name in totals}
        if "view" not in manifest.outputs and counts != totals:
            self.add(f"the manifest counts {counts}, the records {totals}")
        if manifest.ledger is not None and summer.total() != manifest.ledger:
            self.add("the records name other files than the manifest was written about")

    def _planned_rows(self) -> dict[str, int] | None:
        """Number of selected rows of each planned unit, by unit id; None if the plan is damaged."""
        try:
            plan = Plan.load(self.store)
            if plan is None:
                self.add("the plan is missing; completeness cannot be verified", "plan/plan.json")
                return None
            return {
                work.unit.unit_id: work.num_rows
                for part in plan.parts
                for work in read_part(self.store, part.path)
            }
        except (ConsommeError, OSError, ValueError, KeyError, TypeError) as error:
            self.add(f"the plan cannot be read: {error}", "plan/plan.json")
            return None

    def _check_others(self, has_ledger: bool) -> None:
        """Check the files that no record names."""
        manifest = self.manifest
        if manifest is None:
            return
        if not manifest.files:
            self._check_forms(manifest, has_ledger)
            return
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            results = pool.map(self._check_sum, manifest.files, manifest.files.values())
            for path, text in zip(manifest.files, results, strict=True):
                self.num_others += 1
                self.num_bytes += manifest.files[path].num_bytes
                if text:
                    self.add(text, path)
        for path in manifest.files:
            self.files.pop(path, None)
        for path in self.files:
            self.add(f"{path} was not written by this run", path, is_foreign=True)

    def _check_sum(self, path: str, known: FileSum) -> str:
        size = self.files.get(path)
        if size is None:
            return f"{path} is missing"
        if size != known.num_bytes:
            return f"{path} has {size} bytes, recorded {known.num_bytes}"
        if self.checksums and read_sum(self.store, path) != known:
            return f"{path} was changed: its checksum differs"
        return ""

    def _check_forms(self, manifest: Manifest, has_ledger: bool) -> None:
        """Check presence and form of the files of an earlier version, which has no checksums."""
        for name, path in manifest.outputs.items():
            inside = [file for file in self.files if file == path or file.startswith(f"{path}/")]
            is_unit_folder = has_ledger and f"{path}/" in attempts.OUTPUTS
            # A run without rejects has no folder for them.
            if not (inside or is_unit_folder or name == "rejects" or path in LEFT_OUT):
                self.add(f"{name} ({path}) is missing", str(path))
        for path in self.files:
            self.num_others += 1
            self.unproved.append(path)
            text = form_problem(self.store, path)
            if text:
                self.add(f"{path}: {text}", path)


_UNIT_VERBS = ("score", "tag", "recaption", "download")


def _read_manifest(folder: RunFolder) -> bytes:
    try:
        return folder.store.read(MANIFEST)
    except FileNotFoundError:
        # Says whether there is no run, or one that is not finished.
        folder.manifest()
        raise


def _check_counts(record: CommitRecord, planned: dict[str, int]) -> Iterator[VerifyProblem]:
    expected = planned.pop(record.unit_id, None)
    rows = record.counts.get("samples", 0) + record.counts.get("rejected", 0)
    if expected is None:
        yield VerifyProblem(unit_id=record.unit_id, text="the unit is recorded but not planned")
    elif rows != expected:
        yield VerifyProblem(unit_id=record.unit_id, text=f"{rows} of {expected} rows are recorded")


def _check_files(
    store: Store, record: CommitRecord, sizes: Mapping[str, int], checksums: bool
) -> list[VerifyProblem]:
    problems = []
    for file in record.files:
        texts: list[str] = []
        if file.path not in sizes:
            texts.append(f"{file.path} is missing")
        elif sizes[file.path] != file.num_bytes:
            texts.append(f"{file.path} has {sizes[file.path]} bytes, recorded {file.num_bytes}")
        elif checksums:
            texts += _check_content(store, record, file)
        problems += [
            VerifyProblem(unit_id=record.unit_id, text=text, path=file.path) for text in texts
        ]
    return problems


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
