"""Read a folder of images, each beside a text file of the same name: `a.jpg`, `a.txt`.

The folder is listed by each process that reads from it, and once more for each state of it; the
names are what is kept, never the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

from consomme.storage.readers.members import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.text import MAX_RECORD_BYTES, load_record
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import FileInfo, Store

_SIDES = (*TEXT_EXTENSIONS, "json")
"""Endings of files beside an image that hold its text."""


def is_image(path: str) -> bool:
    """Whether a file is an image, by its name; hidden files are not."""
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS


def info(store: Store) -> FileInfo:
    """Return what a listing would say of the folder, if it were one file: of images and texts."""
    digest, size = hashlib.sha256(), 0
    modified = 0.0
    for file in _files(store):
        text = f"{file.path}\0{file.size}\0{file.version}\n"
        digest.update(text.encode("utf-8", "surrogateescape"))
        size, modified = size + file.size, max(modified, file.modified)
    return FileInfo(path="", size=size, modified=modified, version=digest.hexdigest()[:16])


def count(store: Store) -> int:
    """Count the images."""
    return len(_pairs(store.url))


def rows(context: Context, *, start: int, count: int) -> list[RawRow]:
    """Read some images with their texts.

    Args:
        context: Of the folder.
        start: First image, in the order of paths.
        count: Number of images.
    """
    pairs = _pairs(context.store.url)[start : start + count]
    return [
        record_row(
            context,
            partial(_record, context.store, image, sides),
            number=start + number,
            reference=f"{context.shard}{image}",
        )
        for number, (image, sides) in enumerate(pairs)
    ]


def _record(store: Store, image: str, sides: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for path in sides:
        data = store.read_inside(path, 0, MAX_RECORD_BYTES + 1)
        if path.lower().endswith(".json"):
            record = {**load_record(data), **record}
        else:
            record["caption"] = data
    if not sides:
        stem = image.rpartition(".")[0]
        raise RowError("caption_missing", f"{image} has no {stem}.txt beside it")
    return {**record, "image": image, "sample_id": record.get("id", image.rpartition(".")[0])}


def _files(store: Store) -> Iterator[FileInfo]:
    for file in sorted(list_parallel(store), key=lambda file: file.path):
        ending = file.path.lower().rpartition(".")[2]
        if is_image(file.path) or ending in _SIDES:
            yield file


@lru_cache(maxsize=2)
def _pairs(url: str) -> Sequence[tuple[str, tuple[str, ...]]]:
    images: list[str] = []
    sides: dict[str, list[str]] = {}
    for file in _files(open_store(url)):
        if is_image(file.path):
            images.append(file.path)
        else:
            sides.setdefault(file.path.rpartition(".")[0], []).append(file.path)
    # Text files come before JSON, which adds to them.
    return [
        (image, tuple(sorted(sides.get(image.rpartition(".")[0], ()), reverse=True)))
        for image in images
    ]
