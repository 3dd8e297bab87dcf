"""Let a library that writes to local disk write into a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from consomme.base.manifest import FileSum
from consomme.base.places import Scratch
from consomme.storage.ledger.sums import put_file, read_sum
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.store import Store


@dataclass(frozen=True)
class OutputFolder:
    """A local folder whose files end up in a store."""

    folder: Path
    written: dict[str, FileSum] = field(default_factory=dict)
    """Sum of each file that ended up there, by path; filled when the block ends."""


@contextlib.contextmanager
def output_folder(store: Store, *parts: str) -> Iterator[OutputFolder]:
    """Give a local folder, and bring what is written there into a store.

    If the store is local, the folder is the store itself, and the files are read once more, from
    the page cache.

    Args:
        store: Where the files end up.
        parts: Folders, relative to the store, that are written; nothing else writes there.
    """
    if isinstance(store, LocalStore):
        output = OutputFolder(Path(store.root))
        yield output
        for path in _files(output.folder, parts):
            output.written[path] = read_sum(store, path)
        return
    with Scratch() as scratch:
        output = OutputFolder(scratch / "out")
        output.folder.mkdir()
        yield output
        for path in _files(output.folder, parts):
            output.written[path] = put_file(store, path, output.folder / path)


def _files(folder: Path, parts: Sequence[str]) -> list[str]:
    inside = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in inside)
