"""Read COCO's annotation files: one JSON object with a list of images and a list of annotations.

An image's captions stand anywhere among the annotations, so the whole file is parsed; a process
keeps the last one. An image is a record with the list of its captions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow, UnreadableShardError
from consomme.storage.readers.text import UTF8_MARK, finite
from consomme.storage.stores.open import split_url

MAX_BYTES = 1 << 30
"""Largest file that is parsed; it takes several times as much memory."""


def records_of(data: bytes) -> Sequence[dict[str, Any]]:
    """Return the images of an annotation file, each with the list of its captions.

    Raises:
        UnreadableShardError: It is no such file.
    """
    try:
        content = finite(json.loads(data.removeprefix(UTF8_MARK)))
        images, annotations = content["images"], content["annotations"]
        captions: dict[Any, list[Any]] = {}
        for one in annotations:
            if "caption" in one:
                captions.setdefault(one["image_id"], []).append(one["caption"])
        return [
            {**image, "image_id": image["id"], "caption": captions.get(image["id"])}
            for image in images
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"found a JSON object, but no COCO annotations: {type(error).__name__}: {error}"
        raise UnreadableShardError(detail) from error


@lru_cache(maxsize=1)
def _held(url: str, path: str, version: str) -> Sequence[dict[str, Any]]:
    return records_of(split_url(url)[0].read(path))


def count(context: Context, path: str) -> int:
    """Count the images of an annotation file.

    Args:
        context: Of the file.
        path: Of the file in its store.

    Raises:
        UnreadableShardError: It is no such file, or too large to be parsed whole.
    """
    info = context.store.info(path)
    if info.size > MAX_BYTES:
        detail = f"{info.size:,} bytes of one JSON object, at most {MAX_BYTES:,} are parsed; split"
        raise UnreadableShardError(f"{detail} it")
    return len(_held(context.shard, path, info.version))


def rows(context: Context, path: str, *, start: int, count: int) -> list[RawRow]:
    """Parse some images of an annotation file.

    Args:
        context: Of the file.
        path: Of the file in its store.
        start: First image.
        count: Number of images.
    """
    records = _held(context.shard, path, context.store.info(path).version)
    return [
        record_row(
            context,
            partial(dict, record),
            number=start + number,
            reference=f"{context.shard}#{start + number}",
        )
        for number, record in enumerate(records[start : start + count])
    ]
