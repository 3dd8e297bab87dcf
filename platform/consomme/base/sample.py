"""Samples and rejects.

A sample has any number of images and a list of turns. Images are the encoded bytes, never
re-encoded. A turn is text, or text and images in their order. A bad sample becomes a `Reject` with
a reason from a fixed vocabulary, so that reasons can be counted across runs.

Where the images of a sample stand:

| turns | images |
|---|---|
| no turn refers to an image | all before the text of the first user turn, in order |
| one assistant turn only: a caption | the same; the recipe's prompt is the user turn |
| some turns hold `ImageRef`s | where these stand; each image has at least one |
| one assistant turn only, with `ImageRef`s: a document | where these stand in its text |
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

REASON_MEANINGS: Mapping[str, str] = {
    "caption_empty": "the text is empty, white space or invisible characters only",
    "caption_missing": "there is no text for the image",
    "caption_not_text": "the text has NUL characters: binary data, or UTF-16 without its mark",
    "caption_not_utf8": "the text is not valid UTF-8",
    "caption_too_long": "more text than a caption can have, or than the model accepts",
    "conversation_malformed": "turns, roles or image marks are missing, too many or out of order",
    "conversation_unsupported": "the conversation has parts that the model cannot be shown",
    "duplicate_key": "an earlier sample has the same name; in runs of before all were kept",
    "image_animated": "several frames where one is expected",
    "image_empty": "the image has 0 bytes",
    "image_missing": "the record names no image, or the named image does not exist",
    "image_not_encodable": "the model's image processor fails on the image",
    "image_too_elongated": "longer, compared with its width, than allowed",
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
    "region_unreadable": "the boxes of the regions that guide the model cannot be read",
    "score_not_finite": "the model's score is NaN or infinite",
    "sequence_too_long": "more tokens than the model accepts",
    "shard_unreadable": "a whole file that cannot be opened: damaged, empty, or not what it says",
    "text_not_encodable": "the text contains a special token of the model",
    "unsafe_path": "a path that is absolute, leads out of its folder, or to no regular file",
    "url_not_image": "the response is not an image",
    "url_opted_out": "robots.txt or a header forbids the use of the image",
    "url_refused": "the URL leads to a private address, or has an unsupported scheme",
    "url_status": "the server responded with an error",
    "url_timeout": "the server did not respond in time",
    "url_too_large": "the response is larger than allowed",
    "url_unreachable": "the host does not exist or cannot be reached",
    "video_unsupported": "the sample is a video file; frames written as images are read",
}
"""Meaning of each reject reason; add a reason here before using it."""

REJECT_REASONS = frozenset(REASON_MEANINGS)
"""All reject reasons."""

IMAGE_MARK = re.compile(r"<image>|<ImageHere>|<image[ _](\d{1,4})>|<\|image_(\d{1,4})\|>")
"""Marks of images in texts: of LLaVA and most others, InternLM-XComposer, MMMU, and Phi."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One encoded image."""

    data: bytes = field(repr=False)
    """Its bytes, unchanged."""

    name: str
    """Original name, extension included."""


@dataclass(frozen=True)
class ImageRef:
    """The place of an image in a turn's content."""

    index: int
    """Index into the images of the sample."""


Content = str | tuple[str | ImageRef, ...]
"""Of a turn: its text; or texts and images in their order, at least one of them an image."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""

    content: Content
    """The text, unchanged; or texts and images in their order."""

    is_labelled: bool = True
    """Whether an assistant's turn is learned and scored; without effect on other turns."""

    @property
    def text(self) -> str:
        """All of its text, without the images."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def parts(self) -> tuple[str | ImageRef, ...]:
        """Texts and images in their order."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def image_indices(self) -> tuple[int, ...]:
        """Indices of its images, in the order of its content."""
        if isinstance(self.content, str):
            return ()
        return tuple(part.index for part in self.parts if isinstance(part, ImageRef))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some images, or none, with their text."""

    sample_id: str
    """Stable id from the source's own key, unique in its source."""

    images: tuple[ImageFile, ...] = ()
    """The images, in the order of the source."""

    turns: tuple[Turn, ...]
    """The text, in order; ends with an assistant turn. See the module for where images stand."""

    source: str
    """Name of the sample's data set in the recipe."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    """All other fields; JSON values only."""

    @property
    def caption(self) -> str:
        """Text of the last assistant turn; empty if there is none."""
        answers = [turn.text for turn in self.turns if turn.role == "assistant"]
        return answers[-1] if answers else ""

    @property
    def name(self) -> str:
        """Name of its first image, or its id if it has none; tells people where it is from."""
        return self.images[0].name if self.images else self.sample_id

    @property
    def is_document(self) -> bool:
        """Whether it is a text with images in it, and no conversation."""
        return is_document(self.turns)

    @property
    def num_bytes(self) -> int:
        """Bytes of images and characters of text."""
        text = sum(len(turn.text) for turn in self.turns)
        return text + sum(len(image.data) for image in self.images)

    @property
    def has_image_marks(self) -> bool:
        """Whether its text holds what readers take for the mark of an image."""
        return any(IMAGE_MARK.search(turn.text) for turn in self.turns)

    @property
    def is_plain(self) -> bool:
        """Whether `SAMPLE_SCHEMA` holds it: one image, before the text, and nothing else to say."""
        is_caption = [turn.role for turn in self.turns] == ["assistant"]
        return (
            len(self.images) == 1
            and all(isinstance(turn.content, str) and turn.is_labelled for turn in self.turns)
            and (is_caption or not self.has_image_marks)
        )

    def with_caption(self, text: str, **meta: Any) -> Self:
        """Return a copy with `text` as the last assistant turn and `meta` added to its metadata.

        Raises:
            ValueError: That turn holds images, which `text` would replace.
        """
        turns = list(self.turns)
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        if answers:
            turns[answers[-1]] = _with_text(turns[answers[-1]], text)
        else:
            turns.append(Turn(role="assistant", content=text))
        return replace(self, turns=tuple(turns), meta={**self.meta, **meta})


def is_document(turns: Sequence[Turn]) -> bool:
    """Whether it is one text with images in it, and no conversation."""
    return len(turns) == 1 and turns[0].role == "assistant" and bool(turns[0].image_indices)


def _with_text(turn: Turn, text: str) -> Turn:
    """Return a copy of a turn with another text.

    Raises:
        ValueError: The turn holds images, so where they stand in the new text is unknown.
    """
    if turn.image_indices:
        raise ValueError(f"found images in the {turn.role}'s turn, expected text only")
    return replace(turn, content=text)


def content_of(parts: Iterable[str | ImageRef]) -> Content:
    """Return texts and images as the content of a turn: adjacent texts joined, empty ones left out.

    Without an image the content is one text.
    """
    joined: list[str | ImageRef] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    if all(isinstance(part, str) for part in joined):
        return "".join(part for part in joined if isinstance(part, str))
    return tuple(joined)


def without_images(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns with their text only."""
    return tuple(replace(turn, content=turn.text) if turn.image_indices else turn for turn in turns)


def place_images(turns: Sequence[Turn], num_images: int) -> tuple[Turn, ...]:
    """Return the turns with an `ImageRef` for each image.

    Turns without any get all images before the text of the first user turn.

    Args:
        turns: Of a conversation; of a caption only after `turns_of`.
        num_images: Images of the sample.
    """
    if not num_images or any(turn.image_indices for turn in turns):
        return tuple(turns)
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise ValueError("found no user turn to place images in")
    refs = [ImageRef(index) for index in range(num_images)]
    placed = replace(turns[first], content=content_of([*refs, *turns[first].parts]))
    return (*turns[:first], placed, *turns[first + 1 :])


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


def turn_to_json(turn: Turn, *, has_parts: bool = False) -> dict[str, Any]:
    """Return a turn as JSON values: `content` is text, or a list of parts if it has images.

    Args:
        turn: The turn.
        has_parts: Write a list of parts in any case; in these, readers look for no marks of images.
    """
    content: Any = turn.content
    if has_parts or not isinstance(content, str):
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "index": part.index}
            for part in turn.parts
        ]
    message = {"role": turn.role, "content": content}
    return message if turn.is_labelled else message | {"is_labelled": False}


def turn_from_json(message: Mapping[str, Any]) -> Turn:
    """Return the turn that `turn_to_json` wrote."""
    content: Any = message["content"]
    if not isinstance(content, str):
        content = content_of(
            part["text"] if part["type"] == "text" else ImageRef(part["index"]) for part in content
        )
    return Turn(role=message["role"], content=content, is_labelled=message.get("is_labelled", True))


def turns_of(sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """Return the turns of a sample with its images in their places.

    A caption gets the prompt as user turn; a document is returned as it is.
    """
    turns = sample.turns
    system = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = turns[len(system) :]
    if rest and rest[0].role == "assistant" and not sample.is_document:
        turns = (*system, Turn(role="user", content=prompt), *rest)
    return place_images(turns, len(sample.images))
