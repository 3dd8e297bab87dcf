"""Every kind of bad input, and data sets that hold one of each between good samples.

    for shard in write_data_set(folder):
        shard.url, shard.rows     # what must come of each row, in order

Row by row, the good samples must come out with their bytes untouched, and each bad one as exactly
one reject with the reason its kind expects. `consomme.vision.decode` finds the bad pictures, the
readers all the rest.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.zoo_images import BAD_IMAGES, good_image
from tests.support.zoo_tables import (
    BAD_PAGES,
    BAD_RECORDS,
    BAD_ROWS,
    CUT_LINES,
    GOOD_EXTRAS,
    Record,
    record,
    row,
    table_of,
)
from tests.support.zoo_tar import BAD_ENDS, BAD_MEMBERS, END, caption, member, pair

CONTAINERS = ("tar", "parquet", "jsonl", "json")

BAD_CAPTIONS: dict[str, tuple[str, str]] = {
    "caption_empty": ("caption_empty", ""),
    "caption_of_white_space": ("caption_empty", " \r\n\t\u3000 "),
    "caption_of_invisible_characters": ("caption_empty", "\u200b\ufeff\u2060"),
    "caption_with_nul": ("caption_not_text", "a\0cat"),
    "caption_of_200_kilobytes": ("caption_too_long", "word " * 40_000),
    "caption_of_1_megabyte": ("caption_too_long", "é" * 500_000),
}
"""In every container: for each name the reason, and the text."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of bad input in one container."""

    name: str
    """Name of the fault; the same in every container."""

    container: str
    """One of `CONTAINERS`."""

    reason: str
    """Expected reject reason."""

    build: Callable[[str, str], Any]
    """From the bad sample's key, and that of the good one before it, to what the container holds:
    blocks of a tar, a Parquet row, a `Record`."""

    place: str = "among"
    """`among` good samples, at the `end` of a shard, or as a row `group` of its own."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Expected result of one row."""

    key: str
    """The sample's name; of a bad one, what it would be called."""

    kind: Kind | None = None
    """None for a good sample."""

    @property
    def reason(self) -> str | None:
        """Expected reject reason; None if it must not be rejected."""
        return self.kind.reason if self.kind else None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a data set."""

    url: str
    rows: tuple[Row, ...]


def _image_kinds(name: str, reason: str, make: Callable[[], bytes]) -> list[Kind]:
    builders: dict[str, Callable[[str, str], Any]] = {
        "tar": lambda key, _: (
            member(f"{key}.jpg", make()) + member(f"{key}.txt", caption(key).encode())
        ),
        "parquet": lambda key, _: row(key, make()),
        "jsonl": lambda key, _: record(key, make()),
        "json": lambda key, _: record(key, make()),
    }
    return [
        Kind(name=name, container=where, reason=reason, build=builders[where]) for where in builders
    ]


def _caption_kinds(name: str, reason: str, text: str) -> list[Kind]:
    builders: dict[str, Callable[[str, str], Any]] = {
        "tar": lambda key, _: pair(key, text.encode()),
        "parquet": lambda key, _: row(key, caption=text),
        "jsonl": lambda key, _: record(key, caption=text),
        "json": lambda key, _: record(key, caption=text),
    }
    return [
        Kind(name=name, container=where, reason=reason, build=builders[where]) for where in builders
    ]


def _kinds(
    container: str, place: str, table: dict[str, tuple[str, Callable[..., Any]]]
) -> list[Kind]:
    return [
        Kind(name=name, container=container, reason=reason, build=build, place=place)
        for name, (reason, build) in table.items()
    ]


def _row_of_page(key: str, _: str) -> dict[str, Any]:
    return row(key, **GOOD_EXTRAS)


KINDS: tuple[Kind, ...] = (
    *(kind for name, (why, make) in BAD_IMAGES.items() for kind in _image_kinds(name, why, make)),
    *(
        kind
        for name, (why, text) in BAD_CAPTIONS.items()
        for kind in _caption_kinds(name, why, text)
    ),
    *_kinds("tar", "among", BAD_MEMBERS),
    *_kinds("tar", "end", BAD_ENDS),
    *_kinds("parquet", "among", BAD_ROWS),
    *_kinds(
        "parquet", "group", {name: (why, _row_of_page) for name, (why, *_) in BAD_PAGES.items()}
    ),
    *_kinds("jsonl", "among", BAD_RECORDS | CUT_LINES),
    *_kinds("json", "among", BAD_RECORDS),
)
"""All of them."""


def write_data_set(
    folder: Path, containers: Sequence[str] = CONTAINERS, kinds: Sequence[Kind] = KINDS
) -> list[Shard]:
    """Write one folder per container, with a good sample before and after each bad one.

    What can only be at the end of a shard has a shard of its own. Keys are unique in a container,
    except that of the kind whose fault is a key that came before.

    Args:
        folder: Where to write; `folder/tar/*.tar` and so on.
        containers: Which to write.
        kinds: Which kinds to put in.
    """
    shards: list[Shard] = []
    for container in containers:
        chosen = [kind for kind in kinds if kind.container == container]
        among = [kind for kind in chosen if kind.place != "end"]
        shards.append(_write(folder / container, container, "zoo", among, None))
        for kind in chosen:
            if kind.place == "end":
                shards.append(_write(folder / container, container, kind.name, [], kind))
    return shards


def _write(
    folder: Path, container: str, base_name: str, kinds: Sequence[Kind], last: Kind | None
) -> Shard:
    rows = [Row(key=f"{base_name}-good-0")]
    for number, kind in enumerate(kinds):
        rows += [Row(key=f"{kind.name}", kind=kind), Row(key=f"{base_name}-good-{number + 1}")]
    if last:
        rows.append(Row(key=last.name, kind=last))
    folder.mkdir(parents=True, exist_ok=True)
    built = []
    for number, item in enumerate(rows):
        before = rows[number - 1].key
        built.append(item.kind.build(item.key, before) if item.kind else _good(container, item.key))
    data = _PACK[container](folder, rows, built)
    (folder / f"{base_name}.{container}").write_bytes(data)
    return Shard(url=str(folder / f"{base_name}.{container}"), rows=tuple(rows))


def _good(container: str, key: str) -> Any:
    return {
        "tar": pair,
        "parquet": partial(row, **GOOD_EXTRAS),
        "jsonl": record,
        "json": record,
    }[container](key)


def _pack_tar(folder: Path, rows: Sequence[Row], built: Sequence[bytes]) -> bytes:
    is_open = rows[-1].kind is not None and rows[-1].kind.place == "end"
    return b"".join(built) + (b"" if is_open else END)


def _pack_json(folder: Path, rows: Sequence[Row], built: Sequence[Record], *, lines: bool) -> bytes:
    for item in built:
        for path, data in item.files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data)
    texts = [item.text for item in built]
    return b"\n".join(texts) + b"\n" if lines else b"[" + b",\n".join(texts) + b"]\n"


def _pack_parquet(folder: Path, rows: Sequence[Row], built: Sequence[dict[str, Any]]) -> bytes:
    """All rows in one group, but for those whose pages will be damaged."""
    buffer = io.BytesIO()
    groups: list[list[int]] = [[]]
    for number, item in enumerate(rows):
        if item.kind and item.kind.place == "group":
            groups += [[number], []]
        else:
            groups[-1].append(number)
    groups = [group for group in groups if group]
    whole = table_of(list(built))
    with pq.ParquetWriter(buffer, whole.schema, compression="none", use_dictionary=False) as writer:
        for group in groups:
            writer.write_table(whole.take(group), row_group_size=len(rows))
    data = bytearray(buffer.getvalue())
    meta = pq.ParquetFile(io.BytesIO(bytes(data))).metadata
    for index, group in enumerate(groups):
        kind = rows[group[0]].kind
        if kind and kind.place == "group":
            _, path, damage = BAD_PAGES[kind.name]
            _damage_page(data, meta.row_group(index), path, damage)
    return bytes(data)


def _damage_page(data: bytearray, group: Any, path: str, damage: Callable[[bytes], bytes]) -> None:
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunk = next(item for item in chunks if item.path_in_schema == path)
    start, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    data[start:end] = damage(bytes(data[start:end]))


_PACK: dict[str, Callable[..., bytes]] = {
    "tar": _pack_tar,
    "parquet": _pack_parquet,
    "jsonl": partial(_pack_json, lines=True),
    "json": partial(_pack_json, lines=False),
}

__all__ = ["CONTAINERS", "KINDS", "Kind", "Row", "Shard", "good_image", "write_data_set"]
