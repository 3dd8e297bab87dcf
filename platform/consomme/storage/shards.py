"""Resolve the `inputs` of a recipe to a list of shards in a fixed order.

`consomme.storage.patterns` says what an input may be. Every input must match a shard and no shard
may be matched twice, so that a typo never silently gives a smaller or larger data set.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from consomme.base.errors import RecipeError
from consomme.storage.patterns import SHARD_SUFFIXES as SHARD_SUFFIXES
from consomme.storage.patterns import matches
from consomme.storage.stores.store import BROKEN_LINK


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of samples."""

    url: str
    """Absolute URL."""

    size: int
    """Size in bytes."""

    source: str = "data"
    """Name of the data set."""

    name: str = ""
    """Path relative to the deepest folder that holds all shards of the source; part of unit ids."""

    version: str = ""
    """What the storage says of its content; see `FileInfo.version`."""

    modified: float = 0.0
    """Time of the last write, in seconds since 1970."""

    is_of_run: bool = False
    """Whether a finished run wrote it, so that its version is what the run's manifest says."""


def find_shards(
    inputs: Sequence[str],
    source: str = "data",
    sources: Mapping[str, Sequence[str]] | None = None,
    suffixes: tuple[str, ...] = SHARD_SUFFIXES,
) -> list[Shard]:
    """List the shards of all named data sets, with their sizes and versions, in a fixed order.

    Args:
        inputs: Files, folders, globs and brace ranges of the data set called `source`.
        source: Name of that data set.
        sources: Further data sets: inputs by name.
        suffixes: Of the files that are meant.

    Raises:
        RecipeError: No input is given, an input matches nothing, or two match the same shard.
    """
    problems = list(input_problems(inputs, source, sources or {}))
    if problems:
        raise RecipeError("; ".join(problems))
    inputs_by_name = ({source: inputs} if inputs else {}) | dict(sources or {})
    input_by_url: dict[str, str] = {}
    shards: list[Shard] = []
    for name, patterns in inputs_by_name.items():
        found = _find_source(patterns, name, input_by_url, suffixes)
        paths = relative_names([shard.url for shard in found])
        shards += [replace(s, name=path) for s, path in zip(found, paths, strict=True)]
    return shards


def input_problems(
    inputs: Sequence[str], source: str, sources: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Say what is wrong with the inputs that a recipe names; no storage is accessed."""
    if not inputs and not sources:
        yield "inputs: found an empty list, expected at least one shard"
    if inputs and source in sources:
        yield f"sources: {source!r} is the name of `inputs` already; choose another"
    for name, patterns in sources.items():
        if not patterns:
            yield f"sources: {name!r} has no inputs, expected at least one shard"


def shard_urls(inputs: Sequence[str]) -> list[str]:
    """List the URLs of the shards that the inputs match; see `find_shards`."""
    return [shard.url for shard in find_shards(inputs)]


def _find_source(
    inputs: Sequence[str], source: str, input_by_url: dict[str, str], suffixes: tuple[str, ...]
) -> list[Shard]:
    """List the shards of one data set; `input_by_url` maps all shards so far to their inputs."""
    shards = []
    for text in inputs:
        for url, file in matches(text, suffixes):
            if url in input_by_url:
                raise RecipeError(
                    f"inputs: {url} is matched by {input_by_url[url]!r} and again by {text!r}; "
                    "its samples would count twice"
                )
            if file.version == BROKEN_LINK:
                raise RecipeError(
                    f"inputs: {url} is a link that leads to nothing, expected a shard; remove"
                    " it, or bring its target back"
                )
            input_by_url[url] = text
            shards.append(
                Shard(
                    url=url,
                    size=file.size,
                    source=source,
                    version=file.version,
                    modified=file.modified,
                )
            )
    return shards


def shards_fingerprint(shards: Sequence[Shard]) -> str:
    """Fingerprint shards by source, name, size and version, without reading them.

    Names are relative to the deepest folder that holds all shards of a source, so a data set keeps
    its fingerprint when it is mounted elsewhere, or moved by something that keeps its versions.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for shard in shards:
        text = f"{shard.source}\t{shard.name}\t{shard.size}\t{shard.version}\n"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def relative_names(shards: Sequence[str]) -> list[str]:
    """Return the paths of shards relative to the deepest folder that holds them all."""
    folders = [shard.split("/")[:-1] for shard in shards]
    shared = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return ["/".join(shard.split("/")[shared:]) for shard in shards]
