"""From what a recipe writes under `inputs` to the list of shards, in a fixed order.

An input is a file, a folder, a glob (`*`, `?`, `[ab]`, `**` over folders) or a brace range
(`{000..127}`, `{a,b}`). Every input must match something and no shard may be matched twice, so a
typing error never shows up as a smaller or larger data set.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from consomme.base.errors import RecipeError
from consomme.base.suggest import did_you_mean
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.open import absolute_url, open_store, split_url
from consomme.storage.stores.store import join_url

SHARD_SUFFIXES = (".tar", ".parquet", ".jsonl", ".json")
"""What can be read; a folder must hold one kind only."""

_RANGE = re.compile(r"\{([^{}]*)\}")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of samples."""

    url: str
    """Where it is, absolute."""

    size: int
    """Bytes."""

    source: str = "data"
    """Name of the data set it belongs to."""

    name: str = ""
    """What units call it: its path from the folder that all shards of the source share."""


def find_shards(
    inputs: Sequence[str], source: str = "data", sources: Mapping[str, Sequence[str]] | None = None
) -> list[Shard]:
    """List the shards of all named data sets, with their sizes, in a fixed order.

    Args:
        inputs: Files, folders, globs and brace ranges of the data set called `source`.
        source: Its name.
        sources: More data sets: inputs by name.

    Raises:
        RecipeError: An input matches nothing, two inputs match the same shard, or there is none.
    """
    if not inputs and not sources:
        raise RecipeError("inputs: found an empty list, expected at least one shard")
    if inputs and source in (sources or {}):
        raise RecipeError(f"sources: {source!r} is the name of `inputs` already; choose another")
    named = ({source: inputs} if inputs else {}) | dict(sources or {})
    seen: dict[str, str] = {}
    shards: list[Shard] = []
    for name, patterns in named.items():
        found = _find(patterns, name, seen)
        paths = relative_names([shard.url for shard in found])
        shards += [replace(s, name=path) for s, path in zip(found, paths, strict=True)]
    return shards


def shard_urls(inputs: Sequence[str]) -> list[str]:
    """List the URLs of the shards that inputs stand for; see `find_shards`."""
    return [shard.url for shard in find_shards(inputs)]


def _find(inputs: Sequence[str], source: str, seen: dict[str, str]) -> list[Shard]:
    """List the shards of one data set; `seen` maps every shard so far to its input."""
    shards = []
    if not inputs:
        raise RecipeError(f"sources: {source!r} has no inputs, expected at least one shard")
    for text in inputs:
        patterns = _expand_braces(text)
        head = text.partition("{")[0].rpartition("/")[2]
        sizes = _Sizes(is_listed=len(patterns) > _FEW, head=head)
        for pattern in patterns:
            for url, size in _match(pattern, text, sizes):
                if url in seen:
                    raise RecipeError(
                        f"inputs: {url} is matched by {seen[url]!r} and again by {text!r}; "
                        "its samples would count twice"
                    )
                seen[url] = text
                shards.append(Shard(url=url, size=size, source=source))
    return shards


def shards_fingerprint(shards: Sequence[Shard]) -> str:
    """Fingerprint shards by source, name and size, without reading them.

    Names count from the folder that all shards of a source share, so a data set keeps its
    fingerprint when it is moved or mounted elsewhere.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for shard in shards:
        text = f"{shard.source}\t{shard.name}\t{shard.size}\n"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def relative_names(shards: Sequence[str]) -> list[str]:
    """Name shards from the deepest folder that holds them all."""
    folders = [shard.split("/")[:-1] for shard in shards]
    shared = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return ["/".join(shard.split("/")[shared:]) for shard in shards]


def _expand_braces(text: str) -> list[str]:
    found = _RANGE.search(text)
    if not found:
        return [text]
    inside = found.group(1)
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends:
        first, last = ends.groups()
        if int(first) > int(last):
            raise RecipeError(f"inputs: {text!r}: the range {{{inside}}} runs backwards")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    head, tail = text[: found.start()], text[found.end() :]
    return [item for choice in choices for item in _expand_braces(head + choice + tail)]


_FEW = 16
"""More names than this out of one brace range are looked up in a listing, not one by one."""


@dataclass
class _Sizes:
    """Look up the sizes of single files; many names in one folder cost one listing."""

    is_listed: bool
    head: str
    """How all names in the folder of the first brace begin."""

    folders: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, url: str) -> int | None:
        """Return a file's size; None if it is not there."""
        store, name = split_url(url)
        if not self.is_listed:
            return store.size(name) if store.exists(name) else None
        if store.url not in self.folders:
            head = self.head if name.startswith(self.head) else ""
            files = (file for file in list_parallel(store, head) if "/" not in file.path)
            self.folders[store.url] = {file.path: file.size for file in files}
        return self.folders[store.url].get(name)


def _match(pattern: str, text: str, sizes: _Sizes) -> list[tuple[str, int]]:
    """List URL and size of the shards one pattern (without braces) stands for."""
    magic = _MAGIC.search(pattern)
    if magic:
        base = pattern[: magic.start()].rpartition("/")[0]
        base = base or ("/" if pattern.startswith("/") else ".")
        rest = pattern[len(base) :].lstrip("/") if base != "." else pattern.removeprefix("./")
        wanted = re.compile(_glob_to_regex(rest))
        store = open_store(base)
        # What stands before the first special character narrows the listing down.
        head = rest[: _first_magic(rest)]
        files = [file for file in list_parallel(store, head) if wanted.fullmatch(file.path)]
        if not files:
            raise RecipeError(f"inputs: {text!r} matches no file")
        unknown = [file.path for file in files if not file.path.endswith(SHARD_SUFFIXES)]
        if unknown:
            raise RecipeError(f"inputs: {text!r} matches {unknown[0]}; {_EXPECTED}")
        return [(join_url(store.url, file.path), file.size) for file in files]
    if not pattern.endswith("/") and not _is_bucket(pattern):
        store, name = split_url(pattern)
        size = sizes.of(pattern)
        if size is not None:
            if not name.endswith(SHARD_SUFFIXES):
                raise RecipeError(f"inputs: {text!r}: {_EXPECTED}")
            return [(join_url(store.url, name), size)]
    return _match_folder(pattern, text)


def _is_bucket(url: str) -> bool:
    _, scheme, rest = url.partition("://")
    return bool(scheme) and "/" not in rest


def _first_magic(text: str) -> int:
    found = _MAGIC.search(text)
    return found.start() if found else len(text)


def _match_folder(pattern: str, text: str) -> list[tuple[str, int]]:
    store = open_store(pattern)
    files = [file for file in list_parallel(store) if file.path.endswith(SHARD_SUFFIXES)]
    kinds = sorted({file.path.rpartition(".")[2] for file in files})
    if len(kinds) > 1:
        raise RecipeError(
            f"inputs: the folder {text!r} holds {' and '.join(kinds)} files; "
            f"say which to read, as in {join_url(text, f'*.{kinds[-1]}')}"
        )
    if files:
        return [(join_url(store.url, file.path), file.size) for file in files]
    if next(store.list(), None) is not None:
        raise RecipeError(f"inputs: the folder {text!r} holds no shard; {_EXPECTED}")
    hint = ""
    if not pattern.endswith("/") and not _is_bucket(pattern):
        parent, name = split_url(pattern)
        near = itertools.islice(parent.list(), 10_000)
        hint = did_you_mean(name, {file.path.partition("/")[0] for file in near})
    raise RecipeError(f"inputs: {absolute_url(pattern)}: no such file or folder{hint}")


_EXPECTED = f"expected files ending in {', '.join(SHARD_SUFFIXES)}"


def _glob_to_regex(pattern: str) -> str:
    """Translate a glob; `*` stays inside one folder, `**/` crosses them."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(part)
        or ("[" + part[1:].replace("!", "^", 1) if part.startswith("[") else re.escape(part))
        for part in parts
        if part
    )
