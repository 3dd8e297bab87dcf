"""Samples and rejects, in memory and as an Arrow table.

The image is the encoded bytes, never re-encoded. A sample's text is a list of turns; a caption is a
single assistant turn. A bad sample becomes a `Reject` with a reason from a fixed vocabulary, so
that reasons can be counted across runs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa

REASON_MEANINGS: Mapping[str, str] = {
    "caption_empty": "the text is empty, white space or invisible characters only",
    "caption_missing": "there is no text for the image",
    "caption_not_text": "the text has NUL characters: binary data, or UTF-16 without its mark",
    "caption_not_utf8": "the text is not valid UTF-8",
    "caption_too_long": "more text than a caption can have, or than the model accepts",
    "conversation_malformed": "turns or their roles or images are missing or out of order",
    "conversation_unsupported": "the conversation has tools, or masks or weights of turns",
    "duplicate_key": "an earlier sample has the same name",
    "image_animated": "several frames where one is expected",
    "image_empty": "the image has 0 bytes",
    "image_missing": "the record names no image, or the named image does not exist",
    "image_not_encodable": "the model's image processor fails on the image",
    "image_too_large": "more bytes or pixels than allowed, by the header: huge, or a bomb",
    "image_too_small": "fewer pixels than required",
    "image_truncated": "the image is truncated",
    "image_undecodable": "not an image, or a damaged one",
    "killed_worker": "the sample killed the process that worked on it",
    "meta_not_finite": "the metadata has NaN or an infinity, which JSON cannot represent",
    "model_output_empty": "the model generated no text",
    "model_output_truncated": "the model reached its token limit before the end of the text",
    "model_output_withheld": "the server or engine withheld the generated text",
    "model_refused": "the server or engine refused the request",
    "model_timeout": "the model did not finish in time",
    "record_malformed": "the record cannot be parsed, or a part of it has the wrong type",
    "record_too_large": "more bytes in one record than a reader loads into memory",
    "record_truncated": "the shard ends, or the next record starts, before the end of this one",
    "score_not_finite": "the model's score is NaN or infinite",
    "sequence_too_long": "more tokens than the model accepts",
    "text_not_encodable": "the text contains a special token of the model",
    "unsafe_path": "a path that is absolute, leads out of its folder, or to no regular file",
    "url_not_image": "the response is not an image",
    "url_opted_out": "robots.txt or a header forbids the use of the image",
    "url_refused": "the URL leads to a private address, or has an unsupported scheme",
    "url_status": "the server responded with an error",
    "url_timeout": "the server did not respond in time",
    "url_too_large": "the response is larger than allowed",
    "url_unreachable": "the host does not exist or cannot be reached",
}
"""Meaning of each reject reason; add a reason here before using it."""

REJECT_REASONS = frozenset(REASON_MEANINGS)
"""All reject reasons."""

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
"""Columns of samples in memory and in Parquet; `meta` is a JSON object as a string."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""

    content: str
    """The text, unchanged."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its text."""

    sample_id: str
    """Stable id from the source's own key, unique in its source."""

    image: bytes = field(repr=False)
    """The encoded image, bytes unchanged."""

    image_name: str
    """Original name of the image, extension included."""

    turns: tuple[Turn, ...]
    """Text about the image, in order; ends with an assistant turn."""

    source: str
    """Name of the sample's data set in the recipe."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    """All other fields; JSON values only."""

    @property
    def caption(self) -> str:
        """Text of the last assistant turn; empty if there is none."""
        answers = [turn.content for turn in self.turns if turn.role == "assistant"]
        return answers[-1] if answers else ""

    def with_caption(self, text: str, **meta: Any) -> Self:
        """Return a copy with `text` as the last assistant turn and `meta` added to its metadata."""
        turns = list(self.turns)
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        if answers:
            turns[answers[-1]] = Turn(role="assistant", content=text)
        else:
            turns.append(Turn(role="assistant", content=text))
        return replace(self, turns=tuple(turns), meta={**self.meta, **meta})


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A sample that was left out, with the reason."""

    sample_id: str
    """Id of the sample, or a substitute if it has no readable one."""

    source: str
    """Name of its data set."""

    reason: str
    """One of `REJECT_REASONS`."""

    detail: str
    """What was found, as text for people."""

    reference: str
    """Location of its bytes: `shard@offset+length` or `shard#row`."""

    def __post_init__(self) -> None:
        """Check the reason."""
        if self.reason not in REJECT_REASONS:
            raise ValueError(f"reject reason {self.reason!r} is not in REJECT_REASONS")


def printable(text: str, limit: int = 300) -> str:
    """Make any text safe to store, log and show: one line, escaped, cut after `limit` characters.

    Names and messages quote data: lone surrogates cannot be encoded, and a terminal would interpret
    escape characters.
    """
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:limit]
    )
    return escaped[:limit]


def caption_turns(text: str) -> tuple[Turn, ...]:
    """Return the turns of a sample with only a caption."""
    return (Turn(role="assistant", content=text),)


def samples_to_table(samples: Iterable[Sample]) -> pa.Table:
    """Convert samples to an Arrow table with `SAMPLE_SCHEMA`."""
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
    """Convert a table to samples; columns that are not in `SAMPLE_SCHEMA` are ignored."""
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
    """Serialize metadata deterministically: sorted keys, ASCII, no spaces."""
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def turns_of(sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """Return the turns of a sample; a bare caption gets the prompt as user turn."""
    system = tuple(turn for turn in sample.turns[:1] if turn.role == "system")
    rest = sample.turns[len(system) :]
    if rest and rest[0].role == "assistant":
        return (*system, Turn(role="user", content=prompt), *rest)
    return sample.turns
