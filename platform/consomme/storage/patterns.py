"""Match an input of a recipe: a file, a folder, a glob or a brace range.

Globs have `*`, `?`, `[ab]`, and `**` across folders; brace ranges are `{000..127}` and `{a,b}`.
What exists by its literal name is no pattern, whatever characters are in it. Hidden files are no
shards: those of editors and file managers, and what Spark leaves beside its tables.
"""

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from consomme.base.errors import RecipeError
from consomme.base.sample import printable
from consomme.base.suggest import did_you_mean
from consomme.storage import image_folder
from consomme.storage.pins import pinned_url
from consomme.storage.saved_datasets import only_saved
from consomme.storage.stores.hub_place import is_hub_root, is_hub_url
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.open import absolute_url, open_store, split_url
from consomme.storage.stores.regular import kind_of, unsafe_files
from consomme.storage.stores.store import FileInfo, Store, join_url

_COMPRESSED = ("", ".gz", ".zst", ".bz2", ".xz")
_BINARY = (".parquet", ".arrow")
_TEXTS = tuple(
    f"{kind}{how}" for kind in (".jsonl", ".ndjson", ".json", ".csv", ".tsv") for how in _COMPRESSED
)

SHARD_SUFFIXES = (".tar", *_BINARY, *(f".tar{how}" for how in _COMPRESSED[1:]), ".tgz", *_TEXTS)
"""Readable formats; the shards of one folder must all have the same suffix."""

LIST_SUFFIXES = (*_BINARY, *_TEXTS, *(f".txt{how}" for how in _COMPRESSED))
"""Formats of URL lists."""

logger = logging.getLogger(__name__)

_BRACES = re.compile(r"\{([^{}]*)\}")
_MAGIC = re.compile(r"[*?\[]")


_MAX_NAMED = 200
"""Most missing files that a message names."""


def matches(text: str, suffixes: tuple[str, ...] = SHARD_SUFFIXES) -> list[tuple[str, FileInfo]]:
    """List the shards that one input of a recipe matches, in order, each with its URL.

    Args:
        text: The input.
        suffixes: Of the files that are meant.

    Raises:
        RecipeError: It matches nothing, or something that is no shard.
    """
    # Workers read the commit that was listed, whatever the branch is then.
    known_text = _with_literals(pinned_url(text))
    patterns = _expand_braces(known_text, text)
    head = _plain(known_text.partition("{")[0].rpartition("/")[2])
    files = _FileLookup(is_listed=len(patterns) > _MAX_SINGLE_LOOKUPS, head=head)
    found: list[tuple[str, FileInfo]] = []
    missing: list[_MissingError] = []
    for pattern in patterns:
        try:
            found += _match(pattern, text, files, suffixes)
        except _MissingError as error:
            missing.append(error)
    if len(patterns) == 1 and missing:
        raise missing[0]
    if missing:
        names = [printable(error.what) for error in missing]
        more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
        raise RecipeError(
            f"inputs: {text!r} stands for {len(patterns):,} names, of which {len(names):,} are"
            f" missing: {', '.join(names[:_MAX_NAMED])}{more}: no such file or folder"
        )
    return found


_MAX_URL = 1000
"""Longest URL that may be a name; object stores have a limit of 1,024 bytes."""


class _MissingError(RecipeError):
    """Nothing is there.

    Args:
        what: Name or pattern of what was looked for.
        message: For people.
    """

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


_SPECIAL = "{}*?[]"
_LITERAL = "".join(chr(0xE000 + k) for k in range(len(_SPECIAL)))
"""What stands for special characters that are part of a name, while an input is resolved."""

_TO_LITERAL = str.maketrans(_SPECIAL, _LITERAL)
_FROM_LITERAL = str.maketrans(_LITERAL, _SPECIAL)


def _plain(pattern: str) -> str:
    """Return the name that a pattern without special characters stands for."""
    return pattern.translate(_FROM_LITERAL)


def _with_literals(text: str) -> str:
    """Mark the folders and the file of an input that exist by these very names as no patterns."""
    if not (_BRACES.search(text) or _MAGIC.search(text)):
        return text
    if _exists(text):
        return text.translate(_TO_LITERAL)
    parts = text.split("/")
    for number, part in enumerate(parts[:-1]):
        if part.translate(_TO_LITERAL) == part:
            continue
        if not _exists("/".join([*parts[: number + 1], ""])):
            break
        parts[number] = part.translate(_TO_LITERAL)
    return "/".join(parts)


def _exists(url: str) -> bool:
    """Whether there is a file or a folder of this name."""
    if (
        len(url) > _MAX_URL
        or max(len(part.encode("utf-8", "replace")) for part in url.split("/")) > 255
    ):
        return False
    try:
        if url.endswith("/"):
            return next(open_store(url).list(), None) is not None
        store, name = split_url(url)
        return store.exists(name) or next(open_store(url).list(), None) is not None
    except (RecipeError, NotADirectoryError):
        # Who may read files but not list them is refused what does not exist.
        return False


def _expand_braces(pattern: str, text: str) -> list[str]:
    """List the patterns that an input stands for.

    Args:
        pattern: The input, or what is left of its braces.
        text: The input, for messages.
    """
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
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
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [item for choice in choices for item in _expand_braces(head + choice + tail, text)]


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


def _match(
    pattern: str, text: str, known: _FileLookup, suffixes: tuple[str, ...]
) -> list[tuple[str, FileInfo]]:
    """List the shards that match one pattern without braces, by URL."""
    if _MAGIC.search(pattern):
        return _match_glob(pattern, text, suffixes)
    pattern = _plain(pattern)
    if not pattern.endswith("/") and not _is_bucket(pattern):
        store, name = split_url(pattern)
        file = known.of(pattern)
        if file is not None:
            if not name.endswith(suffixes):
                raise RecipeError(f"inputs: {text!r}: {_expected(suffixes)}")
            return [(join_url(store.url, name), file)]
        if isinstance(store, LocalStore) and (kind := kind_of(f"{store.root}/{name}")):
            raise RecipeError(f"inputs: {text!r} is {kind}; {_expected(suffixes)}")
    return _match_folder(pattern, text, suffixes)


def _match_glob(pattern: str, text: str, suffixes: tuple[str, ...]) -> list[tuple[str, FileInfo]]:
    """List the shards that a glob matches; folders that it matches if there is no such file."""
    start = _first_magic(pattern)
    base = pattern[:start].rpartition("/")[0]
    base = base or ("/" if pattern.startswith("/") else ".")
    rest = pattern[len(base) :].lstrip("/") if base != "." else pattern.removeprefix("./")
    store = open_store(_plain(base))
    # The text before the first special character narrows the listing.
    head = _plain(rest[: _first_magic(rest)])
    wanted = re.compile(_glob_to_regex(rest.rstrip("/")))
    in_folders = re.compile(f"(?:{wanted.pattern})/.*", re.DOTALL)
    files, hidden = [], []
    folders: dict[str, None] = {}
    for file in list_parallel(store, head):
        is_match = bool(wanted.fullmatch(file.path))
        if not (is_match or in_folders.fullmatch(file.path)):
            continue
        if _is_hidden(file.path, rest):
            hidden.append(file.path)
        elif is_match:
            files.append(file)
        elif not files:
            folders[next(name for name in _folders_of(file.path) if wanted.fullmatch(name))] = None
    _tell_hidden(store, hidden, text)
    if not files and not folders:
        raise _MissingError(_plain(pattern), f"inputs: {text!r} matches no file")
    if not files:
        urls = [f"{join_url(store.url, name)}/" for name in sorted(folders)]
        return [shard for url in urls for shard in _match_folder(url, text, suffixes)]
    unknown = [file.path for file in files if not file.path.endswith(suffixes)]
    if unknown:
        raise RecipeError(f"inputs: {text!r} matches {unknown[0]}; {_expected(suffixes)}")
    _check_safe(store, files, text)
    return [(join_url(store.url, file.path), file) for file in files]


def _folders_of(path: str) -> list[str]:
    """Return the folders that a file is in, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts))]


def _is_hidden(path: str, pattern: str = "") -> bool:
    """Whether programs leave a file beside data that is none of them.

    Such as `.ipynb_checkpoints/`, the `._` files of macOS, `_SUCCESS` and `_temporary/` of Spark.
    Folders that begin with an underscore count, files only if they do not end as shards do.

    Args:
        path: Relative to the folder that is listed.
        pattern: That matches it; what it spells out is not hidden.
    """
    *folders, name = path.split("/")
    spelled = {part[:1] for part in pattern.split("/")}
    is_own = name.startswith("_") and name.endswith(SHARD_SUFFIXES)
    starts = {folder[:1] for folder in folders} | ({name[:1]} if not is_own else set())
    return bool((starts & {".", "_"}) - spelled)


def _tell_hidden(store: Store, hidden: Sequence[str], text: str) -> None:
    """Say that shards are left out because they are hidden."""
    shards = [path for path in hidden if path.endswith(SHARD_SUFFIXES)]
    if shards:
        logger.warning(
            "inputs: %r: %s hidden files are left out, such as %s; name them to read them",
            text,
            f"{len(shards):,}",
            printable(join_url(store.url, shards[0])),
        )


def _is_bucket(url: str) -> bool:
    if is_hub_url(url):
        return is_hub_root(url)
    _, scheme, rest = url.partition("://")
    return bool(scheme) and "/" not in rest


def _first_magic(text: str) -> int:
    match = _MAGIC.search(text)
    return match.start() if match else len(text)


def _match_folder(pattern: str, text: str, suffixes: tuple[str, ...]) -> list[tuple[str, FileInfo]]:
    store = open_store(pattern)
    listed = [file for file in list_parallel(store) if file.path.endswith(suffixes)]
    files = [file for file in listed if not _is_hidden(file.path)]
    _tell_hidden(store, [file.path for file in listed if _is_hidden(file.path)], text)
    files = only_saved(store, files, text)
    if suffixes is SHARD_SUFFIXES:
        files = _without_notes(store, files)
    kinds = sorted({_kind(file.path, suffixes) for file in files})
    if len(kinds) > 1:
        raise RecipeError(
            f"inputs: the folder {text!r} holds {' and '.join(kinds)} files; "
            f"say which to read, as in {join_url(text, f'*.{kinds[-1]}')}"
        )
    if files:
        _check_safe(store, files, text)
        return [(join_url(store.url, file.path), file) for file in files]
    pictures = image_folder.info(store) if suffixes is SHARD_SUFFIXES else None
    if pictures is not None:
        # A folder of images with their texts is one shard.
        return [(f"{store.url.rstrip('/')}/", pictures)]
    if next(store.list(), None) is not None:
        raise RecipeError(f"inputs: the folder {text!r} holds no shard; {_expected(suffixes)}")
    if "://" not in store.url and Path(store.url).is_dir():
        raise RecipeError(f"inputs: the folder {text!r} is empty; {_expected(suffixes)}")
    hint = ""
    if not pattern.endswith("/") and not _is_bucket(pattern):
        parent, name = split_url(pattern)
        # One level only: what lies below the folders may be the whole machine.
        near = itertools.islice(parent.list_level(), 10_000)
        hint = did_you_mean(name, {entry.path.removesuffix("/") for entry in near})
    what = absolute_url(pattern)
    raise _MissingError(what, f"inputs: {what}: no such file or folder{hint}")


def _without_notes(store: Store, files: list[FileInfo]) -> list[FileInfo]:
    """Leave out what is about other files of a folder: tables, and JSON about single images."""
    if files and all(file.path.endswith(".json") for file in files):
        stems = image_folder.image_stems(store)
        return [file for file in files if file.path.removesuffix(".json") not in stems]
    others = [file for file in files if not file.path.endswith((".csv", ".tsv"))]
    return others or files


def _kind(path: str, suffixes: tuple[str, ...]) -> str:
    """Return the ending of a shard that says its format, without how it is compressed."""
    ending = max((one for one in suffixes if path.endswith(one)), key=len)
    return next(
        (ending.removesuffix(how) for how in _COMPRESSED[1:] if ending.endswith(how)), ending
    ).lstrip(".")


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


def _expected(suffixes: tuple[str, ...]) -> str:
    """Say which files are meant."""
    plain = [one for one in suffixes if not one.endswith(_COMPRESSED[1:])]
    said = f"expected files ending in {', '.join(plain)}, or compressed text"
    if suffixes == LIST_SUFFIXES:
        said += "; download takes lists of URLs with captions, and no shards of images"
    return said


def _glob_to_regex(pattern: str) -> str:
    """Translate a glob to a regex; `*` matches inside one folder, `**/` across folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(part)
        or ("[" + part[1:].replace("!", "^", 1) if part.startswith("[") else _escaped(part))
        for part in parts
        if part
    )


def _escaped(part: str) -> str:
    return re.escape(_plain(part))
