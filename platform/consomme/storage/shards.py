"""From what a recipe writes under `inputs` to the list of shards, in a fixed order.

An input is a file, a folder, a glob (`*`, `?`, `[ab]`, `**` over folders) or a brace range
(`{000..127}`, `{a,b}`). Every input must match something and no shard may be matched twice, so a
typing error never shows up as a smaller or larger data set.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence

from consomme.base.errors import RecipeError
from consomme.base.suggest import did_you_mean
from consomme.storage.files import absolute_url, join_url, open_store, split_url

SHARD_SUFFIXES = (".tar", ".parquet", ".jsonl", ".json")
"""What can be read; a folder must hold one kind only."""

_RANGE = re.compile(r"\{([^{}]*)\}")
_MAGIC = re.compile(r"[*?\[]")


def expand(inputs: Sequence[str]) -> list[str]:
    """List the shards that inputs stand for.

    Args:
        inputs: Files, folders, globs and brace ranges, relative to the current directory.

    Returns:
        URLs, absolute, input by input and in byte order within an input.

    Raises:
        RecipeError: An input matches nothing, or two inputs match the same shard.
    """
    if not inputs:
        raise RecipeError("inputs: found an empty list, expected at least one shard")
    shards: dict[str, str] = {}
    for text in inputs:
        for pattern in _expand_braces(text):
            for shard in _match(pattern, text):
                if shard in shards:
                    raise RecipeError(
                        f"inputs: {shard} is matched by {shards[shard]!r} and again by {text!r}; "
                        "its samples would count twice"
                    )
                shards[shard] = text
    return list(shards)


def shards_fingerprint(shards: Sequence[str]) -> str:
    """Fingerprint shards by name and size, without reading them.

    Names count from the folder that all shards share, so a data set keeps its fingerprint when it
    is moved or mounted elsewhere.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, shard in zip(relative_names(shards), shards, strict=True):
        store, path = split_url(shard)
        digest.update(f"{name}\t{store.size(path)}\n".encode("utf-8", "surrogateescape"))
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


def _match(pattern: str, text: str) -> list[str]:
    """List the shards one pattern (without braces) stands for."""
    magic = _MAGIC.search(pattern)
    if magic:
        base = pattern[: magic.start()].rpartition("/")[0]
        base = base or ("/" if pattern.startswith("/") else ".")
        rest = pattern[len(base) :].lstrip("/") if base != "." else pattern.removeprefix("./")
        wanted = re.compile(_glob_to_regex(rest))
        store = open_store(base)
        paths = [file.path for file in store.list() if wanted.fullmatch(file.path)]
        if not paths:
            raise RecipeError(f"inputs: {text!r} matches no file")
        unknown = [path for path in paths if not path.endswith(SHARD_SUFFIXES)]
        if unknown:
            raise RecipeError(f"inputs: {text!r} matches {unknown[0]}; {_EXPECTED}")
        return [join_url(store.url, path) for path in paths]
    if not pattern.endswith("/"):
        store, name = split_url(pattern)
        if store.exists(name):
            if not name.endswith(SHARD_SUFFIXES):
                raise RecipeError(f"inputs: {text!r}: {_EXPECTED}")
            return [join_url(store.url, name)]
    return _match_folder(pattern, text)


def _match_folder(pattern: str, text: str) -> list[str]:
    store = open_store(pattern)
    paths = [file.path for file in store.list() if file.path.endswith(SHARD_SUFFIXES)]
    kinds = sorted({path.rpartition(".")[2] for path in paths})
    if len(kinds) > 1:
        raise RecipeError(
            f"inputs: the folder {text!r} holds {' and '.join(kinds)} files; "
            f"say which to read, as in {join_url(text, f'*.{kinds[-1]}')}"
        )
    if paths:
        return [join_url(store.url, path) for path in paths]
    if next(store.list(), None) is not None:
        raise RecipeError(f"inputs: the folder {text!r} holds no shard; {_EXPECTED}")
    hint = ""
    if not pattern.endswith("/"):
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
