"""What one sample is, in memory and as an Arrow table, and what becomes of a bad one.

The image is the encoded bytes, never re-encoded. A sample's text is a list of turns; a caption is a
single assistant turn. A bad sample becomes a `Reject` with a reason out of a fixed vocabulary, so
that reasons can be counted across runs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa

ROLES = ("system", "user", "assistant")
"""Who can speak in a turn."""

REJECT_REASONS = frozenset(
    {
        "caption_empty",
        "caption_missing",
        "caption_not_utf8",
        "caption_too_long",
        "conversation_malformed",
        "duplicate_key",
        "image_animated",
        "image_empty",
        "image_missing",
        "image_too_large",
        "image_too_small",
        "image_truncated",
        "image_undecodable",
        "model_output_empty",
        "model_output_truncated",
        "record_malformed",
        "record_truncated",
        "score_not_finite",
        "sequence_too_long",
        "text_not_encodable",
        "unsafe_path",
    }
)
"""Every reason a sample can be rejected for; add a word here before using it."""

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
"""Columns of samples in memory and in Parquet; `meta` is a JSON object as text."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One thing said, and by whom."""

    role: str
    """`system`, `user` or `assistant`."""

    content: str
    """The text, exactly as it came."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its text."""

    sample_id: str
    """Stable name from the source's own key, unique inside its source."""

    image: bytes = field(repr=False)
    """The encoded image, byte for byte as it came."""

    image_name: str
    """The image's name where it came from, extension included."""

    turns: tuple[Turn, ...]
    """What is said about the image, in order; ends with an assistant turn."""

    source: str
    """Which data set the sample belongs to, as the recipe names it."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that came along; JSON values only."""

    @property
    def caption(self) -> str:
        """The last assistant turn's text; empty if there is none."""
        said = [turn.content for turn in self.turns if turn.role == "assistant"]
        return said[-1] if said else ""

    def with_caption(self, text: str, **meta: Any) -> Self:
        """Return a copy whose last assistant turn says `text`; `meta` is added to the sample's."""
        turns = list(self.turns)
        spoken = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        if spoken:
            turns[spoken[-1]] = Turn(role="assistant", content=text)
        else:
            turns.append(Turn(role="assistant", content=text))
        return replace(self, turns=tuple(turns), meta={**self.meta, **meta})


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A sample that was left out, and why."""

    sample_id: str
    """The sample's name, or the best that could be made out."""

    source: str
    """Which data set it belongs to."""

    reason: str
    """A word out of `REJECT_REASONS`."""

    detail: str
    """What exactly was found, for a person."""

    reference: str
    """Where its bytes are: `shard@offset+length`, or `shard#row`."""

    def __post_init__(self) -> None:
        """Hold the vocabulary fixed."""
        if self.reason not in REJECT_REASONS:
            raise ValueError(f"reject reason {self.reason!r} is not in REJECT_REASONS")


def caption_turns(text: str) -> tuple[Turn, ...]:
    """Make the turns of a sample that has nothing but a caption."""
    return (Turn(role="assistant", content=text),)


def samples_to_table(samples: Iterable[Sample]) -> pa.Table:
    """Put samples into an Arrow table with `SAMPLE_SCHEMA`."""
    rows = list(samples)
    columns = {
        "sample_id": [sample.sample_id for sample in rows],
        "image": [sample.image for sample in rows],
        "image_name": [sample.image_name for sample in rows],
        "turns": [
            [{"role": turn.role, "content": turn.content} for turn in sample.turns]
            for sample in rows
        ],
        "source": [sample.source for sample in rows],
        "meta": [meta_to_json(sample.meta) for sample in rows],
    }
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def table_to_samples(table: pa.Table) -> list[Sample]:
    """Read samples back out of a table; columns beyond `SAMPLE_SCHEMA` are left alone."""
    names: Sequence[str] = SAMPLE_SCHEMA.names
    return [
        Sample(
            sample_id=row["sample_id"],
            image=row["image"],
            image_name=row["image_name"],
            turns=tuple(Turn(role=turn["role"], content=turn["content"]) for turn in row["turns"]),
            source=row["source"],
            meta=json.loads(row["meta"]),
        )
        for row in table.select(names).to_pylist()
    ]


def meta_to_json(meta: Mapping[str, Any]) -> str:
    """Write metadata the same way every time: sorted keys, ASCII, no spaces."""
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
