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

REASON_MEANINGS: Mapping[str, str] = {
    "caption_empty": "the text is empty, white space or invisible characters only",
    "caption_missing": "there is no text beside the picture",
    "caption_not_text": "the text holds NUL characters: binary data, or UTF-16 without a mark",
    "caption_not_utf8": "the text is not valid UTF-8",
    "caption_too_long": "more text than a caption has, or than the model takes",
    "conversation_malformed": "turns are missing, out of order, or by nobody known",
    "duplicate_key": "a sample of this name came before",
    "image_animated": "several frames where one is wanted",
    "image_empty": "the picture has no bytes",
    "image_missing": "the record names no picture, or there is none where it says",
    "image_not_encodable": "the model's own processor does not take the picture",
    "image_too_large": "more bytes or pixels than the budget, by the header: a bomb, or just huge",
    "image_too_small": "fewer pixels than wanted",
    "image_truncated": "the picture breaks off",
    "image_undecodable": "not a picture, or a damaged one",
    "killed_worker": "the process that worked on the sample died of it",
    "meta_not_finite": "the metadata holds NaN or an infinity, which JSON has no word for",
    "model_output_empty": "the model wrote nothing",
    "model_output_truncated": "the model was still writing when it had to stop",
    "model_output_withheld": "what runs the model holds its text back",
    "model_refused": "what runs the model does not take the request",
    "model_timeout": "the model did not finish in time",
    "record_malformed": "the record cannot be parsed, or a part of it is not what it should be",
    "record_too_large": "more bytes in one record than a reader takes into memory",
    "record_truncated": "the shard, or the next record, begins before this one has ended",
    "score_not_finite": "the model's score is NaN or infinite",
    "sequence_too_long": "more tokens than the model takes",
    "text_not_encodable": "the text holds a special token of the model",
    "unsafe_path": "a path that is absolute or leads out of its folder",
    "url_not_image": "what came from the URL is not a picture",
    "url_opted_out": "the server does not want the picture to be used",
    "url_refused": "the URL leads to a private address, or is of a kind that is never fetched",
    "url_status": "the server answered with an error",
    "url_timeout": "the server did not answer in time",
    "url_too_large": "the answer is larger than is taken",
    "url_unreachable": "there is no such host, or no connection to it",
}
"""What each reason means, in half a sentence; add a word here before using it."""

REJECT_REASONS = frozenset(REASON_MEANINGS)
"""Every reason a sample can be rejected for."""

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


def printable(text: str, limit: int = 300) -> str:
    """Make any text safe to store, log and show: one line, escaped, cut after `limit` characters.

    Names and messages quote what the data holds: lone surrogates cannot be written, and a terminal
    would act on escape characters.
    """
    shown = "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii")
        for mark in text[:limit]
    )
    return shown[:limit]


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


def turns_of(sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """Put the prompt before a sample that is nothing but a caption."""
    if sample.turns and sample.turns[0].role == "assistant":
        return (Turn(role="user", content=prompt), *sample.turns)
    return sample.turns
