"""Good records and rows, and faulty ones in their place."""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tests.support.zoo_images import good_image
from tests.support.zoo_tar import caption


@dataclass(frozen=True, kw_only=True)
class Record:
    """One JSON record, and the pictures beside the file."""

    text: bytes
    files: dict[str, bytes] = field(default_factory=dict)


def record(key: str, image: bytes | None = None, /, **changes: Any) -> Record:
    """A good record with some changes; a change to None takes the key out."""
    path = f"images/{key}.png"
    values = {"id": key, "image": path, "caption": caption(key), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    return Record(
        text=json.dumps(values).encode(), files={path: good_image(key) if image is None else image}
    )


def raw(key: str, tail: bytes) -> Record:
    """A record that ends in these bytes instead of a caption."""
    start = json.dumps({"id": key, "image": f"images/{key}.png"})[:-1].encode()
    return Record(text=start + tail, files={f"images/{key}.png": good_image(key)})


def talk(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """A conversation in LLaVA's words."""
    return [{"from": role, "value": text} for role, text in turns]


RecordBuilder = Callable[[str, str], Record]

BAD_RECORDS: dict[str, tuple[str, RecordBuilder]] = {
    "not_json": (
        "record_malformed",
        lambda key, _: Record(text=b'{"id": "' + key.encode() + b'" 5}'),
    ),
    "not_an_object": ("record_malformed", lambda key, _: Record(text=b'["' + key.encode() + b'"]')),
    "not_utf8": ("record_malformed", lambda key, _: raw(key, b', "caption": "caf\xe9"}')),
    "nul_byte": ("record_malformed", lambda key, _: raw(key, b', "caption": "a\0b"}')),
    "number_of_5000_digits": (
        "record_malformed",
        lambda key, _: raw(key, b', "caption": "a", "n": ' + b"9" * 5000 + b"}"),
    ),
    "bottomless": (
        "record_malformed",
        lambda key, _: raw(key, b', "caption": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    ),
    "nested_200_deep": (
        "record_malformed",
        lambda key, _: raw(key, b', "caption": "a", "n": ' + b"[" * 200 + b"]" * 200 + b"}"),
    ),
    "key_twice": (
        "record_malformed",
        lambda key, _: raw(key, b', "caption": "a", "caption": "b"}'),
    ),
    "line_of_17_megabytes": (
        "record_too_large",
        lambda key, _: record(key, note="x" * 17_000_000),
    ),
    "lone_surrogate": ("caption_not_utf8", lambda key, _: record(key, caption="a \ud800 cat")),
    "caption_is_a_list": ("record_malformed", lambda key, _: record(key, caption=["a", "b"])),
    "name_with_a_lone_surrogate": ("record_malformed", lambda key, _: record(key, id="\udcff")),
    "name_of_5000_letters": ("record_malformed", lambda key, _: record(key, id=key * 1000)),
    "no_picture_named": ("image_missing", lambda key, _: record(key, image=None)),
    "picture_that_is_not_there": (
        "image_missing",
        lambda key, _: record(key, image="images/0.png"),
    ),
    "picture_that_is_a_folder": ("image_missing", lambda key, _: record(key, image="images")),
    "picture_at_a_url": ("image_missing", lambda key, _: record(key, image="https://x.org/a.png")),
    "path_with_a_lone_surrogate": ("image_missing", lambda key, _: record(key, image="\ud8000")),
    "absolute_path": ("unsafe_path", lambda key, _: record(key, image="/etc/hostname")),
    "parent_path": ("unsafe_path", lambda key, _: record(key, image="images/../../x.png")),
    "picture_is_a_number": ("record_malformed", lambda key, _: record(key, image=7)),
    "speaker_nobody_knows": (
        "conversation_malformed",
        lambda key, _: record(key, conversations=talk(("bird", "tweet"))),
    ),
    "nobody_answers": (
        "conversation_malformed",
        lambda key, _: record(key, conversations=talk(("human", "what?"))),
    ),
    "no_turns": ("conversation_malformed", lambda key, _: record(key, conversations=[])),
    "turn_is_a_number": (
        "conversation_malformed",
        lambda key, _: record(key, conversations=talk(("gpt", 5))),
    ),
    "two_pictures_in_one_question": (
        "conversation_malformed",
        lambda key, _: record(
            key, conversations=talk(("human", "<image><image>?"), ("gpt", "two"))
        ),
    ),
}
"""In JSON lines and JSON arrays: for each name the reason, and how the record is made."""

CUT_LINES: dict[str, tuple[str, RecordBuilder]] = {
    "cut_line": ("record_malformed", lambda key, _: Record(text=record(key).text[:-9])),
    "line_of_zeros": ("record_malformed", lambda key, _: Record(text=bytes(3000))),
}
"""In JSON lines only: a broken bracket in an array takes the whole file."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("caption", pa.string()),
        ("meta", pa.string()),
        ("similarity", pa.float64()),
        ("taken", pa.timestamp("s")),
        ("price", pa.list_(pa.struct([("amount", pa.decimal128(9, 2))]))),
    ]
)


def row(key: str, image: bytes | None = None, /, **changes: Any) -> dict[str, Any]:
    """A good row of a Parquet shard with some changes; text may be given as bytes."""
    picture = {"bytes": good_image(key) if image is None else image, "path": f"{key}.png"}
    return {"id": key, "image": picture, "caption": caption(key), **changes}


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Put rows into a table without checking that text is UTF-8, as other writers do."""
    columns = []
    for spec in SCHEMA:
        values = [item.get(spec.name) for item in rows]
        if spec.type == pa.string():
            encoded = [value.encode() if isinstance(value, str) else value for value in values]
            columns.append(pa.array(encoded, pa.binary()).view(pa.string()))
        else:
            columns.append(pa.array(values, spec.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


RowBuilder = Callable[[str, str], dict[str, Any]]

BAD_ROWS: dict[str, tuple[str, RowBuilder]] = {
    "null_picture": ("image_missing", lambda key, _: row(key, image=None)),
    "null_bytes_and_path": (
        "image_missing",
        lambda key, _: row(key, image={"bytes": None, "path": None}),
    ),
    "picture_that_is_not_there": (
        "image_missing",
        lambda key, _: row(key, image={"bytes": None, "path": "nowhere.png"}),
    ),
    "parent_path": (
        "unsafe_path",
        lambda key, _: row(key, image={"bytes": None, "path": "../secret.png"}),
    ),
    "null_caption": ("caption_missing", lambda key, _: row(key, caption=None)),
    "caption_not_utf8": ("caption_not_utf8", lambda key, _: row(key, caption=b"caf\xe9")),
    "caption_of_surrogate_bytes": (
        "caption_not_utf8",
        lambda key, _: row(key, caption=b"a \xed\xa0\x80 cat"),
    ),
    "name_not_utf8": ("record_malformed", lambda key, _: row(key, id=b"\xff")),
    "meta_not_json": ("record_malformed", lambda key, _: row(key, meta="{score: 1}")),
    "meta_has_a_key_twice": ("record_malformed", lambda key, _: row(key, meta='{"a": 1, "a": 2}')),
    "meta_is_bottomless": ("record_malformed", lambda key, _: row(key, meta="[" * 50_000)),
}
"""In Parquet: for each name the reason, and how the row is made."""

BAD_PAGES = {
    "broken_page_of_pictures": (
        "record_malformed",
        "image.bytes",
        lambda page: b"\xff" * len(page),
    ),
    "broken_page_of_captions": ("record_malformed", "caption", lambda page: b"\xff" * len(page)),
    "zeros_for_a_page": ("record_malformed", "image.bytes", lambda page: bytes(len(page))),
}
"""A row group of its own: for each name the reason, the column, and what becomes of its page."""


GOOD_EXTRAS: dict[str, Any] = {
    "meta": '{"licence": "CC0"}',
    "similarity": 0.25,
    "taken": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC).replace(tzinfo=None),
    "price": [{"amount": None}],
}
"""Columns of metadata that good rows have."""
