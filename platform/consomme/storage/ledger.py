"""The ledger: a run's output appears unit by unit, exactly once, whoever dies and whenever.

A unit's files are written first, under names that contain their own checksum; then one small
commit record is created, which only one of many committers can do. Readers see what commit records
name and nothing else. So a crash leaves stray files at worst, a second attempt writes the same
names, and a restart lists the commit records and does the rest. Records hold no clock and no host:
the same work makes the same bytes.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest, from_json, to_json
from consomme.base.sample import Reject
from consomme.storage.files import Store, join_url, open_store
from consomme.storage.units import Unit

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
REPORT = "report.html"
_COMMITS = "commits/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One file a unit made."""

    kind: str
    """What it holds: `scores`, `samples`, `rejects`, …"""

    path: str
    """Inside the run folder."""

    num_bytes: int
    """Its size."""

    sha256: str
    """Its checksum, in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """What one finished unit left behind."""

    unit: Unit
    """The unit."""

    files: tuple[OutputFile, ...] = ()
    """Its files, rejects included."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by outcome; `rejected/<reason>` for each reason."""

    sums: Mapping[str, float] = field(default_factory=dict)
    """Sums that later stages add up over units, such as `nll` and `num_tokens`."""

    histogram: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Exact counts by column and bucket."""

    @property
    def unit_id(self) -> str:
        """The unit's id."""
        return self.unit.unit_id

    def path_of(self, kind: str) -> str | None:
        """Return the path of the file of one kind; None if the unit has none."""
        return next((file.path for file in self.files if file.kind == kind), None)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Cheap to make, can be pickled, and any number may be open at once."""

    url: str
    """Where it is."""

    store: Store
    """The same, opened."""

    @classmethod
    def open(cls, root: str, verb: str, name: str, fingerprint: str) -> "RunFolder":
        """Open the folder `<root>/<verb>/<name>-<fingerprint>/`; nothing is written yet.

        Raises:
            RecipeError: The name cannot be part of a path.
        """
        if not _NAME.fullmatch(name):
            raise RecipeError(
                f"name: found {name!r}, expected letters, digits, '.', '_' and '-'; "
                "it becomes part of a path"
            )
        return cls.at(join_url(root, verb, f"{name}-{fingerprint}"))

    @classmethod
    def at(cls, url: str) -> "RunFolder":
        """Open a run folder by its own URL."""
        store = open_store(url)
        return cls(store.url, store)

    @property
    def path(self) -> str:
        """The same as `url`: a plain path when the run is on a local disk."""
        return self.url

    @property
    def is_done(self) -> bool:
        """Whether the run finished: the manifest is written last."""
        return self.store.exists(MANIFEST)

    def begin(self, recipe_yaml: str) -> None:
        """Save the recipe, so that an unfinished run can be told from its folder alone."""
        self.store.write(RECIPE, recipe_yaml.encode())

    def write_output(self, unit: Unit, kind: str, data: bytes, suffix: str) -> OutputFile:
        """Write one of a unit's files, as `data/<unit_id>-<checksum>.<suffix>`.

        Nobody sees it before `commit` names it; writing it again changes nothing.
        """
        return self._write_hashed("data", unit, kind, data, suffix)

    def commit(
        self,
        unit: Unit,
        files: Sequence[OutputFile],
        counts: Mapping[str, int],
        rejects: Sequence[Reject] = (),
        sums: Mapping[str, float] | None = None,
        histogram: Mapping[str, Mapping[str, int]] | None = None,
    ) -> bool:
        """Make a unit's output visible, at most once.

        Rejects are written first and counted as `rejected` and `rejected/<reason>`, unless
        `counts` says so already.

        Args:
            unit: The unit.
            files: What `write_output` returned.
            counts: Rows by outcome.
            rejects: Samples that were left out, in row order.
            sums: Numbers to be added up over units.
            histogram: Exact counts by column and bucket, to be added up over units.

        Returns:
            True if this call committed the unit, False if another one had before; then the other
            one's output counts and this one's is never seen.
        """
        made = list(files)
        counted = dict(counts)
        if rejects:
            made.append(
                self._write_hashed("rejects", unit, "rejects", _json_lines(rejects), "jsonl")
            )
            counted.setdefault("rejected", len(rejects))
            for reason in sorted({reject.reason for reject in rejects}):
                number = sum(reject.reason == reason for reject in rejects)
                counted.setdefault(f"rejected/{reason}", number)
        record = CommitRecord(
            unit=unit,
            files=tuple(made),
            counts=counted,
            sums=dict(sums or {}),
            histogram=dict(histogram or {}),
        )
        text = json.dumps(dataclasses.asdict(record), sort_keys=True, separators=(",", ":"))
        return self.store.create(f"{_COMMITS}{unit.unit_id}.json", text.encode())

    def done_units(self) -> set[str]:
        """List the ids of committed units, without opening their records."""
        return {
            file.path.removeprefix(_COMMITS).removesuffix(".json")
            for file in self.store.list(_COMMITS)
        }

    def iter_commits(self) -> Iterator[CommitRecord]:
        """Yield commit records in the order of unit ids, one in memory at a time.

        Raises:
            DataError: A record cannot be read.
        """
        for file in self.store.list(_COMMITS):
            yield self._read_commit(file.path)

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
        """Add up the counts of all committed units; keys come sorted."""
        totals: dict[str, int] = {}
        for record in self.iter_commits():
            for key, number in record.counts.items():
                totals[key] = totals.get(key, 0) + number
        return dict(sorted(totals.items()))

    def total_sums(self) -> dict[str, float]:
        """Add up the sums of all committed units, in unit order; keys come sorted."""
        parts: dict[str, list[float]] = {}
        for record in self.iter_commits():
            for key, value in record.sums.items():
                parts.setdefault(key, []).append(value)
        return {key: math.fsum(values) for key, values in sorted(parts.items())}

    def finish(self, manifest: Manifest, recipe_yaml: str) -> Manifest:
        """Sweep up after attempts that died, write the recipe and, last, the manifest.

        Returns:
            The manifest with its URL.
        """
        self.store.sweep()
        self.store.write(RECIPE, recipe_yaml.encode())
        self.store.write(MANIFEST, to_json(manifest).encode())
        return dataclasses.replace(manifest, url=self.url)

    def manifest(self) -> Manifest:
        """Read the manifest of a finished run.

        Raises:
            DataError: The run has not finished, or there is none.
        """
        try:
            text = self.store.read(MANIFEST).decode()
        except FileNotFoundError as error:
            state = "not finished; run it again to go on" if self._exists() else "no run is there"
            raise DataError(
                f"{self.url}: expected a finished run, found no {MANIFEST}: {state}"
            ) from error
        return from_json(text, self.url)

    def _exists(self) -> bool:
        return next(self.store.list(), None) is not None

    def _write_hashed(
        self, folder: str, unit: Unit, kind: str, data: bytes, suffix: str
    ) -> OutputFile:
        digest = hashlib.sha256(data).hexdigest()
        path = f"{folder}/{unit.unit_id}-{digest[:8]}.{suffix}"
        self.store.write(path, data)
        return OutputFile(kind=kind, path=path, num_bytes=len(data), sha256=digest)

    def _read_commit(self, path: str) -> CommitRecord:
        try:
            content: dict[str, Any] = json.loads(self.store.read(path))
            return CommitRecord(
                unit=Unit.from_dict(content.pop("unit")),
                files=tuple(OutputFile(**file) for file in content.pop("files")),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{join_url(self.url, path)}: not a commit record ({error}); "
                "delete it to have its unit done again"
            ) from error


def load_manifest(url: str) -> Manifest:
    """Read the manifest of a finished run by the run's URL; see `RunFolder.manifest`."""
    return RunFolder.at(url).manifest()


def _json_lines(rejects: Sequence[Reject]) -> bytes:
    lines = [json.dumps(dataclasses.asdict(reject), sort_keys=True) for reject in rejects]
    return ("\n".join(lines) + "\n").encode()
