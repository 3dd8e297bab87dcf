"""Run folders: a run's output becomes visible unit by unit, exactly once, despite crashes.

A unit's files are written first, under names that contain their own checksum. Then one small commit
record is created exclusively, so that only one of several committers succeeds. Readers see the
files named by commit records and nothing else. A crash therefore leaves orphaned files at worst, a
second attempt writes the same names, and a restart lists the commit records and does the remaining
units. `attempts` decides who may write, and packs many records into few objects.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import FileSum, Manifest, from_json, to_json
from consomme.base.sample import Reject
from consomme.base.secrets import redact
from consomme.storage.ledger import attempts, sums
from consomme.storage.ledger.commits import CommitRecord, OutputFile
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import Store, join_url
from consomme.storage.unit import Unit

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
PROGRESS = "progress.json"
FAILURE = "failure.json"
SELF_CHECK = "selfcheck.json"
"""How the run's model was run, and what was compared with its plain forward pass."""

SELF_CHECKS = "selfcheck"
"""The same for runs of several models: a file for each, named by the hash of its content."""

SAMPLES = "samples"
"""Kind of output file that is a shard of samples."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Cheap to create, picklable, and safe to open many times."""

    url: str
    """URL of the folder."""

    store: Store
    """Store rooted at the folder."""

    @classmethod
    def open(cls, root: str, verb: str, name: str, fingerprint: str) -> "RunFolder":
        """Open the folder `<root>/<verb>/<name>-<fingerprint>/`. Writes nothing.

        Raises:
            RecipeError: The name is not allowed in a path.
        """
        if not _NAME.fullmatch(name):
            raise RecipeError(
                f"name: found {name!r}, expected letters, digits, '.', '_' and '-'; "
                "it becomes part of a path"
            )
        return cls.at(join_url(root, verb, f"{name}-{fingerprint}"))

    @classmethod
    def at(cls, url: str) -> "RunFolder":
        """Open a run folder by its URL."""
        store = open_store(url)
        return cls(store.url, store)

    @property
    def path(self) -> str:
        """Same as `url`; a plain path if the run is on a local disk."""
        return self.url

    def keep_self_check(self, engine: object, model_hash: str = "") -> None:
        """Store the result of an engine's self-check, if it has one and it is not stored yet.

        Args:
            engine: Just opened.
            model_hash: Of its model's content, if the run has several models.
        """
        check = getattr(engine, "check", None)
        if check is not None:
            name = f"{SELF_CHECKS}/{model_hash[:16]}.json" if model_hash else SELF_CHECK
            self.store.create(name, check.to_json())

    @property
    def is_done(self) -> bool:
        """Whether the run has finished, that is, has a manifest."""
        return self.store.exists(MANIFEST)

    def create(self, recipe_yaml: str) -> None:
        """Save the recipe, so that the folder of an unfinished run says what the run is."""
        self.store.write(RECIPE, recipe_yaml.encode())

    def start_attempt(self) -> int:
        """Start an attempt: fence off earlier ones and return this one's number.

        If the ledger is closed already, returns the number of the closing entry.
        """
        return attempts.start(self.store).number

    @property
    def was_started(self) -> bool:
        """Whether an attempt was ever started."""
        return attempts.latest(self.store).number > 0

    def check_current(self, attempt_no: int) -> None:
        """Check that no later attempt has begun.

        Raises:
            SupersededError: One has; the message names it.
        """
        attempts.check_current(self.store, attempt_no)

    @property
    def is_closed(self) -> bool:
        """Whether all units are committed and the ledger is in its final form."""
        return attempts.latest(self.store).is_closed

    def write_output(self, unit: Unit, kind: str, data: bytes, suffix: str) -> OutputFile:
        """Write one output file of a unit, as `data/<unit_id>-<checksum>.<suffix>`.

        Samples go to `shards/` instead, so that this folder can be read as a data set. The file is
        invisible to readers until `commit` names it. Idempotent.
        """
        folder = "shards" if kind == SAMPLES else "data"
        return self._write_hashed(folder, unit, kind, data, suffix)

    def commit(
        self,
        attempt_no: int,
        unit: Unit,
        files: Sequence[OutputFile],
        counts: Mapping[str, int],
        rejects: Sequence[Reject] = (),
        sums: Mapping[str, float] | None = None,
    ) -> CommitRecord:
        """Make a unit's output visible, at most once.

        Rejects are written first and counted as `rejected` and `rejected/<reason>`, unless
        `counts` has these keys already.

        Args:
            attempt_no: Returned by `start_attempt`.
            unit: The unit.
            files: Returned by `write_output`.
            counts: Rows by outcome.
            rejects: Samples that were left out, in row order.
            sums: Numbers to be added over units.

        Returns:
            The valid record: this one, or the one that another worker of the same attempt committed
            first; in that case this output stays invisible.

        Raises:
            SupersededError: A later attempt has begun; nothing was committed.
        """
        all_files = list(files)
        all_counts = dict(counts)
        if rejects:
            all_files.append(
                self._write_hashed("rejects", unit, "rejects", _json_lines(rejects), "jsonl")
            )
            all_counts.setdefault("rejected", len(rejects))
            for reason in sorted({reject.reason for reject in rejects}):
                number = sum(reject.reason == reason for reject in rejects)
                all_counts.setdefault(f"rejected/{reason}", number)
        record = CommitRecord(
            unit=unit,
            files=tuple(all_files),
            counts=all_counts,
            sums=dict(sums or {}),
        )
        attempts.check_current(self.store, attempt_no)
        path = attempts.commit_path(attempt_no, unit.unit_id)
        if self.store.create(path, record.to_json()):
            return record
        try:
            return CommitRecord.from_json(self.store.read(path), join_url(self.url, path))
        except FileNotFoundError:
            # It was packed in the meantime, or this attempt was overtaken.
            attempts.check_current(self.store, attempt_no)
            return record

    def pack_commits(self, attempt_no: int, sequence: int, records: Sequence[CommitRecord]) -> None:
        """Pack the records of finished units into one object; see `attempts.write_segment`."""
        attempts.write_segment(self.store, attempt_no, sequence, records)

    def close(self, attempt_no: int) -> None:
        """Close the ledger once every unit is committed, and delete orphaned files.

        Raises:
            SupersededError: A later attempt has begun.
        """
        if not self.is_closed:
            attempts.close(self.store, attempt_no)
        attempts.remove_orphans(self.store)

    def done_units(self) -> set[str]:
        """List the ids of committed units, without opening their records."""
        return attempts.done_units(self.store)

    def iter_commits(self) -> Iterator[CommitRecord]:
        """Yield commit records in the order of unit ids; few are in memory at a time.

        Raises:
            DataError: A record cannot be read.
        """
        return attempts.iter_records(self.store)

    def find_commit(self, unit_id: str) -> CommitRecord | None:
        """Read the commit record of one unit of a finished run; None if there is none.

        Raises:
            DataError: The run is not finished, or a record cannot be read.
        """
        return attempts.find_record(self.store, unit_id)

    def commits(self) -> dict[str, CommitRecord]:
        """Read all commit records, by unit id, in the order of unit ids."""
        return {record.unit_id: record for record in self.iter_commits()}

    def rejects(self) -> Iterator[Reject]:
        """Yield all committed rejects in the order of units and rows."""
        for record in self.iter_commits():
            path = record.path_of("rejects")
            for line in self.store.read(path).splitlines() if path else []:
                yield Reject(**json.loads(line))

    def total_counts(self) -> dict[str, int]:
        """Add up the counts of all committed units; keys are sorted."""
        totals: dict[str, int] = {}
        for counts in attempts.iter_field(self.store, "counts"):
            for key, number in counts.items():
                totals[key] = totals.get(key, 0) + number
        return dict(sorted(totals.items()))

    def total_sums(self) -> dict[str, float]:
        """Add up the sums of all committed units, exactly rounded; keys are sorted."""
        values_by_key: dict[str, list[float]] = {}
        for one in attempts.iter_field(self.store, "sums"):
            for key, value in one.items():
                values_by_key.setdefault(key, []).append(value)
        return {key: math.fsum(values) for key, values in sorted(values_by_key.items())}

    def finish(
        self, manifest: Manifest, recipe_yaml: str, written: Mapping[str, FileSum] | None = None
    ) -> Manifest:
        """Delete orphaned files of dead attempts, write the recipe and, last, the manifest.

        Args:
            manifest: Without sums of files, which are added here.
            recipe_yaml: The resolved recipe.
            written: Sums of files that were taken when they were written.

        Returns:
            The manifest as stored, with its URL.
        """
        self.store.remove_orphans()
        self.store.write(RECIPE, recipe_yaml.encode())
        has_ledger = self.is_closed
        complete = dataclasses.replace(
            manifest,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            files=sums.collect(
                self.store, written or {}, without=attempts.OUTPUTS if has_ledger else ()
            ),
            ledger=sums.ledger_sum(self.iter_commits()) if has_ledger else None,
        )
        text = to_json(complete)
        self.store.write(MANIFEST, text.encode())
        # As it will be read, so that a report drawn now is the one that is drawn later.
        return from_json(text, self.url)

    def manifest(self) -> Manifest:
        """Read the manifest of a finished run.

        Raises:
            DataError: The run has not finished or does not exist.
        """
        try:
            text = self.store.read(MANIFEST).decode()
        except FileNotFoundError as error:
            state = "not finished; run it again to go on" if self._exists() else "no run is there"
            if failure := self.failure():
                state = (
                    f"its last attempt ended with {failure['class']}: {failure['message']}"
                    f" ({failure['advice']})"
                )
            raise DataError(
                f"{self.url}: expected a finished run, found no {MANIFEST}: {state}"
            ) from error
        return from_json(text, self.url)

    def failure(self) -> dict[str, Any]:
        """Read why the last attempt ended; empty if it did not fail, or its driver was killed."""
        try:
            content: dict[str, Any] = json.loads(self.store.read(FAILURE))
        except FileNotFoundError:
            return {}
        return content

    def _exists(self) -> bool:
        return next(self.store.list(), None) is not None

    def _write_hashed(
        self, folder: str, unit: Unit, kind: str, data: bytes, suffix: str
    ) -> OutputFile:
        digest = hashlib.sha256(data).hexdigest()
        path = f"{folder}/{unit.unit_id}-{digest[:8]}.{suffix}"
        self.store.write(path, data)
        return OutputFile(kind=kind, path=path, num_bytes=len(data), sha256=digest)


def load_manifest(url: str) -> Manifest:
    """Read the manifest of a finished run by the run's URL; see `RunFolder.manifest`."""
    return RunFolder.at(url).manifest()


def _json_lines(rejects: Sequence[Reject]) -> bytes:
    lines = []
    for reject in rejects:
        fields = dataclasses.asdict(reject)
        # A library's text may quote a signed URL, or a password in one, and so may a reference.
        fields["detail"] = redact(fields["detail"])
        fields["reference"] = redact(fields["reference"], is_record=True)
        lines.append(json.dumps(fields, sort_keys=True))
    return ("\n".join(lines) + "\n").encode()
