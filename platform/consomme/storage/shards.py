"""Resolve the `inputs` of a recipe to a list of shards in a fixed order.

An input is a file, a folder, a glob (`*`, `?`, `[ab]`, `**` across folders) or a brace range
(`{000..127}`, `{a,b}`). Every input must match a shard and no shard may be matched twice, so that a
typo never silently gives a smaller or larger data set.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from consomme.base.errors import RecipeError
from consomme.base.sample import printable
from consomme.base.suggest import did_you_mean
from consomme.storage.pins import pinned_url
from consomme.storage.stores.hub_place import is_hub_root, is_hub_url
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.open import absolute_url, open_store, split_url
from consomme.storage.stores.regular import kind_of, unsafe_files
from consomme.storage.stores.store import BROKEN_LINK, FileInfo, Store, join_url

SHARD_SUFFIXES = (".tar", ".parquet", ".jsonl", ".json")
"""Readable formats; the shards of one folder must all have the same suffix."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_MAGIC = re.compile(r"[*?\[]")


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
    inputs: Sequence[str], source: str = "data", sources: Mapping[str, Sequence[str]] | None = None
) -> list[Shard]:
    """List the shards of all named data sets, with their sizes and versions, in a fixed order.

    Args:
        inputs: Files, folders, globs and brace ranges of the data set called `source`.
        source: Name of that data set.
        sources: Further data sets: inputs by name.

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
        matches = _find_source(patterns, name, input_by_url)
        paths = relative_names([shard.url for shard in matches])
        shards += [replace(s, name=path) for s, path in zip(matches, paths, strict=True)]
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


def _find_source(inputs: Sequence[str], source: str, input_by_url: dict[str, str]) -> list[Shard]:
    """List the shards of one data set; `input_by_url` maps all shards so far to their inputs."""
    shards = []
    for text in inputs:
        # Workers read the commit that was listed, whatever the branch is then.
        patterns = _expand_braces(pinned_url(text))
        head = text.partition("{")[0].rpartition("/")[2]
        files = _FileLookup(is_listed=len(patterns) > _MAX_SINGLE_LOOKUPS, head=head)
        for pattern in patterns:
            for url, file in _match(pattern, text, files):
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


def _expand_braces(text: str) -> list[str]:
    match = _BRACES.search(text)
    if not match:
        return [text]
    inside = match.group(1)
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends:
        first, last = ends.groups()
        if int(first) > int(last):
            raise RecipeError(f"inputs: {text!r}: the range {{{inside}}} runs backwards")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    head, tail = text[: match.start()], text[match.end() :]
    return [item for choice in choices for item in _expand_braces(head + choice + tail)]


_MAX_SINGLE_LOOKUPS = 16
"""If a brace range gives more names than this, they are looked up in a listing."""


@dataclass
class _FileLookup:
    """Looks up files by name; many names in one folder cost one listing."""

    is_listed: bool
    head: str
    """Common prefix of all names in the folder of the first brace."""

    folders: dict[str, dict[str, FileInfo]] = field(default_factory=dict)

    def of(self, url: str) -> FileInfo | None:
        """Return what the storage says of a file; None if it does not exist."""
        store, name = split_url(url)
        if not self.is_listed:
            try:
                return store.info(name)
            except FileNotFoundError:
                return None
        if store.url not in self.folders:
            head = self.head if name.startswith(self.head) else ""
            files = (file for file in list_parallel(store, head) if "/" not in file.path)
            self.folders[store.url] = {file.path: file for file in files}
        return self.folders[store.url].get(name)


def _match(pattern: str, text: str, known: _FileLookup) -> list[tuple[str, FileInfo]]:
    """List the shards that match one pattern without braces, by URL."""
    magic = _MAGIC.search(pattern)
    if magic:
        base = pattern[: magic.start()].rpartition("/")[0]
        base = base or ("/" if pattern.startswith("/") else ".")
        rest = pattern[len(base) :].lstrip("/") if base != "." else pattern.removeprefix("./")
        wanted = re.compile(_glob_to_regex(rest))
        store = open_store(base)
        # The text before the first special character narrows the listing.
        head = rest[: _first_magic(rest)]
        files = [file for file in list_parallel(store, head) if wanted.fullmatch(file.path)]
        if not files:
            raise RecipeError(f"inputs: {text!r} matches no file")
        unknown = [file.path for file in files if not file.path.endswith(SHARD_SUFFIXES)]
        if unknown:
            raise RecipeError(f"inputs: {text!r} matches {unknown[0]}; {_EXPECTED}")
        _check_safe(store, files, text)
        return [(join_url(store.url, file.path), file) for file in files]
    if not pattern.endswith("/") and not _is_bucket(pattern):
        store, name = split_url(pattern)
        file = known.of(pattern)
        if file is not None:
            if not name.endswith(SHARD_SUFFIXES):
                raise RecipeError(f"inputs: {text!r}: {_EXPECTED}")
            return [(join_url(store.url, name), file)]
        if isinstance(store, LocalStore) and (kind := kind_of(f"{store.root}/{name}")):
            raise RecipeError(f"inputs: {text!r} is {kind}; {_EXPECTED}")
    return _match_folder(pattern, text)


def _is_bucket(url: str) -> bool:
    if is_hub_url(url):
        return is_hub_root(url)
    _, scheme, rest = url.partition("://")
    return bool(scheme) and "/" not in rest


def _first_magic(text: str) -> int:
    match = _MAGIC.search(text)
    return match.start() if match else len(text)


def _match_folder(pattern: str, text: str) -> list[tuple[str, FileInfo]]:
    store = open_store(pattern)
    files = [file for file in list_parallel(store) if file.path.endswith(SHARD_SUFFIXES)]
    kinds = sorted({file.path.rpartition(".")[2] for file in files})
    if len(kinds) > 1:
        raise RecipeError(
            f"inputs: the folder {text!r} holds {' and '.join(kinds)} files; "
            f"say which to read, as in {join_url(text, f'*.{kinds[-1]}')}"
        )
    if files:
        _check_safe(store, files, text)
        return [(join_url(store.url, file.path), file) for file in files]
    if next(store.list(), None) is not None:
        raise RecipeError(f"inputs: the folder {text!r} holds no shard; {_EXPECTED}")
    if "://" not in store.url and Path(store.url).is_dir():
        raise RecipeError(f"inputs: the folder {text!r} is empty; {_EXPECTED}")
    hint = ""
    if not pattern.endswith("/") and not _is_bucket(pattern):
        parent, name = split_url(pattern)
        # One level only: what lies below the folders may be the whole machine.
        near = itertools.islice(parent.list_level(), 10_000)
        hint = did_you_mean(name, {entry.path.removesuffix("/") for entry in near})
    raise RecipeError(f"inputs: {absolute_url(pattern)}: no such file or folder{hint}")


def _check_safe(store: Store, files: Sequence[FileInfo], text: str) -> None:
    """Refuse what a listing found and the user did not name: pipes, links out of the folder."""
    if not isinstance(store, LocalStore):
        return
    for path, why in unsafe_files(store.root, (file.path for file in files)):
        raise RecipeError(
            f"inputs: {text!r} finds {printable(join_url(store.url, path))}: {why}; remove it, or"
            " name the files to read one by one, as in FOLDER/{a,b}.tar, where links may lead"
            " anywhere"
        )


_EXPECTED = f"expected files ending in {', '.join(SHARD_SUFFIXES)}"


def _glob_to_regex(pattern: str) -> str:
    """Translate a glob to a regex; `*` matches inside one folder, `**/` across folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(part)
        or ("[" + part[1:].replace("!", "^", 1) if part.startswith("[") else re.escape(part))
        for part in parts
        if part
    )
