"""List a folder of images with texts beside them, which is one shard.

The folder is listed by each process that reads from it, and once more for each state of it; the
names are what is kept, never the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.open import open_store, split_url
from consomme.storage.stores.store import FileInfo, Store

IMAGE_EXTENSIONS = frozenset(
    "avif bmp gif heic heif hif jfif jp2 jpe jpeg jpg jxl png pnm ppm tif tiff webp".split()
)
"""Extensions of images, after the last dot."""

TEXT_EXTENSIONS = ("txt", "caption", "text")
"""Extensions of captions, in order of preference."""

_SIDES = (*TEXT_EXTENSIONS, "json")
"""Endings of files beside an image that hold its text."""


def split_shard(url: str) -> tuple[Store, str]:
    """Split the URL of a shard into its folder and its name, which a folder of images has not."""
    return (open_store(url), "") if url.endswith("/") else split_url(url)


def is_image(path: str) -> bool:
    """Whether a file is an image, by its name; hidden files are not."""
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS


def image_stems(store: Store) -> frozenset[str]:
    """Return the paths of the images in a folder, without their extensions."""
    paths = (file.path for file in list_parallel(store))
    return frozenset(path.rpartition(".")[0] for path in paths if is_image(path))


def info(store: Store) -> FileInfo | None:
    """Return what a listing would say of the folder, if it were one file.

    Args:
        store: The folder.

    Returns:
        Size and version of its images and texts; None if there is no image with a text.
    """
    digest, size, modified = hashlib.sha256(), 0, 0.0
    files = list(_files(store))
    texts = {file.path.rpartition(".")[0] for file in files if not is_image(file.path)}
    if not any(is_image(f.path) and f.path.rpartition(".")[0] in texts for f in files):
        return None
    for file in files:
        text = f"{file.path}\0{file.size}\0{file.version}\n"
        digest.update(text.encode("utf-8", "surrogateescape"))
        size, modified = size + file.size, max(modified, file.modified)
    return FileInfo(path="", size=size, modified=modified, version=f"f{digest.hexdigest()[:15]}")


def _files(store: Store) -> Iterator[FileInfo]:
    for file in sorted(list_parallel(store), key=lambda file: file.path):
        ending = file.path.lower().rpartition(".")[2]
        if is_image(file.path) or ending in _SIDES:
            yield file


@lru_cache(maxsize=2)
def pairs_of(url: str) -> Sequence[tuple[str, tuple[str, ...]]]:
    """Return the images of a folder, by path, each with the files beside it that hold its text."""
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
