"""Read a folder of images, each beside a text file of the same name: `a.jpg`, `a.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from consomme.storage.image_folder import pairs_of
from consomme.storage.readers.record import Context, record_row
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.text import MAX_RECORD_BYTES, load_record
from consomme.storage.stores.store import Store


def count(store: Store) -> int:
    """Count the images."""
    return len(pairs_of(store.url))


def rows(context: Context, *, start: int, count: int) -> list[RawRow]:
    """Read some images with their texts.

    Args:
        context: Of the folder.
        start: First image, in the order of paths.
        count: Number of images.
    """
    pairs = pairs_of(context.store.url)[start : start + count]
    found = []
    for number, (image, sides) in enumerate(pairs, start):
        row = record_row(
            context,
            partial(_record, context.store, image, sides),
            number=number,
            reference=f"{context.shard}{image}",
        )
        found.append(replace(row, sample_id=image))
    return found


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
    return {"sample_id": image, **record, "image": image}
