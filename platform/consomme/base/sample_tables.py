"""Samples as an Arrow table, in memory and in Parquet files."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from consomme.base.sample import ImageFile, ImageRef, Sample, Turn, content_of

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("image_name", pa.string(), nullable=False),
        pa.field(
            "turns",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            nullable=False,
        ),
        pa.field("source", pa.string(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
    ]
)
"""Columns of plain samples: one image, before the text; `meta` is a JSON object as a string."""

_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))

MANY_IMAGES_SCHEMA = pa.schema(
    [
        SAMPLE_SCHEMA.field("sample_id"),
        pa.field(
            "images",
            pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            nullable=False,
        ),
        pa.field(
            "messages",
            pa.list_(
                pa.struct(
                    [
                        ("role", pa.string()),
                        ("content", _CONTENT),
                        ("image_indices", pa.list_(pa.int32())),
                        ("is_labelled", pa.bool_()),
                    ]
                )
            ),
            nullable=False,
        ),
        SAMPLE_SCHEMA.field("source"),
        SAMPLE_SCHEMA.field("meta"),
    ]
)
"""Columns of samples with any number of images, as Hugging Face's chat data sets have them: parts
of `content` are of type `text` or `image`; `image_indices` says which image each of the latter
is."""


def table_schema(samples: Iterable[Sample]) -> pa.Schema:
    """Return the schema of a table of samples: `SAMPLE_SCHEMA` if all are plain."""
    return SAMPLE_SCHEMA if all(sample.is_plain for sample in samples) else MANY_IMAGES_SCHEMA


def samples_to_table(samples: Iterable[Sample]) -> pa.Table:
    """Convert samples to an Arrow table; see `table_schema`."""
    rows = list(samples)
    shared = {
        "sample_id": [sample.sample_id for sample in rows],
        "source": [sample.source for sample in rows],
        "meta": [meta_to_json(sample.meta) for sample in rows],
    }
    if table_schema(rows) is SAMPLE_SCHEMA:
        columns = shared | {
            "image": [sample.images[0].data for sample in rows],
            "image_name": [sample.images[0].name for sample in rows],
            "turns": [
                [{"role": turn.role, "content": turn.text} for turn in sample.turns]
                for sample in rows
            ],
        }
        return pa.table({n: columns[n] for n in SAMPLE_SCHEMA.names}, schema=SAMPLE_SCHEMA)
    columns = shared | {
        "images": [
            [{"bytes": image.data, "path": image.name} for image in sample.images]
            for sample in rows
        ],
        "messages": [[turn_to_message(turn) for turn in sample.turns] for sample in rows],
    }
    return pa.table({n: columns[n] for n in MANY_IMAGES_SCHEMA.names}, schema=MANY_IMAGES_SCHEMA)


def table_to_samples(table: pa.Table) -> list[Sample]:
    """Convert a table to samples; columns of neither schema are ignored.

    In shards, an image is a struct of its bytes and its path.
    """
    if "images" not in table.column_names:
        is_struct = pa.types.is_struct(table.schema.field("image").type)
        return [
            Sample(
                sample_id=row["sample_id"],
                images=(
                    ImageFile(
                        data=row["image"]["bytes"] if is_struct else row["image"],
                        name=row["image_name"],
                    ),
                ),
                turns=tuple(Turn(role=t["role"], content=t["content"]) for t in row["turns"]),
                source=row["source"],
                meta=json.loads(row["meta"]),
            )
            for row in table.select(SAMPLE_SCHEMA.names).to_pylist()
        ]
    return [
        Sample(
            sample_id=row["sample_id"],
            images=tuple(ImageFile(data=i["bytes"], name=i["path"]) for i in row["images"]),
            turns=tuple(turn_from_message(message) for message in row["messages"]),
            source=row["source"],
            meta=json.loads(row["meta"]),
        )
        for row in table.select(MANY_IMAGES_SCHEMA.names).to_pylist()
    ]


def turn_to_message(turn: Turn) -> dict[str, Any]:
    """Return a turn as `MANY_IMAGES_SCHEMA` has it."""
    return {
        "role": turn.role,
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in turn.parts
        ],
        "image_indices": list(turn.image_indices),
        "is_labelled": turn.is_labelled,
    }


def turn_from_message(message: Mapping[str, Any]) -> Turn:
    """Return the turn that `turn_to_message` wrote."""
    indices = iter(message["image_indices"])
    parts = [
        part["text"] if part["type"] == "text" else ImageRef(next(indices))
        for part in message["content"]
    ]
    return Turn(role=message["role"], content=content_of(parts), is_labelled=message["is_labelled"])


def meta_to_json(meta: Mapping[str, Any]) -> str:
    """Serialize metadata deterministically: sorted keys, ASCII, no spaces."""
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
