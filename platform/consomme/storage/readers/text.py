"""Shared by all formats: parse captions, conversations and JSON, and check samples."""

import itertools
import json
import math
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consomme.base.errors import DataError
from consomme.base.sample import ImageRef, Sample, Turn, caption_turns, content_of
from consomme.base.sample import printable as printable
from consomme.storage.readers.marks import bind_marks
from consomme.storage.readers.row import RowError

MAX_TEXT_BYTES = 65_536
"""Maximum text per sample; more is a scraped page, not a caption."""

MAX_RECORD_BYTES = 16 * 2**20
"""Maximum JSON text of one record; parsed, it takes about ten times as much memory."""

MAX_SAMPLE_BYTES = 128 * 2**20
"""Maximum bytes of one sample, image included, that are read into memory."""

MAX_NAME_BYTES = 4096
"""Maximum length of a sample or image name; file systems have the same limit for paths."""

MAX_DEPTH = 100
"""Maximum nesting of JSON. Python's own limit depends on the caller's stack depth."""

TURN_KEYS = ("turns", "conversations", "messages")
"""Keys of a record that may hold a conversation, in order of preference."""

CAPTION_KEYS = ("caption", "text")
"""Keys of a record that may hold a caption, in order of preference."""

ID_KEYS = ("sample_id", "id", "key", "__key__")
"""Keys of a record that may hold the sample id, in order of preference."""

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "ipython": "tool",
}

_CALL_ROLES = frozenset({"function", "function_call", "tool_call"})
"""Roles of turns that call a tool, whose format is another one in each chat template."""

_UNSUPPORTED_KEYS = ("tools", "functions")
"""Keys beside a conversation that change what a chat template writes."""

_UNSUPPORTED_TURN_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys of a turn that are part of what was said."""

_MASK_KEYS = ("weight", "loss", "train", "loss_weight")
"""Keys of a turn that say whether it is trained on, as OpenAI, ms-swift and axolotl have them."""

IMAGE_PART_KEYS = ("image", "image_url", "url", "path")
"""Keys of a content part of type image that may say which image it is."""


def load_record(data: bytes) -> dict[str, Any]:
    """Parse one JSON object."""
    record = load_json(data)
    if not isinstance(record, dict):
        raise RowError("record_malformed", f"found {type(record).__name__}, expected an object")
    return record


def load_json(data: bytes | str) -> Any:
    """Parse strict JSON: no duplicate keys, no NaN, limited nesting."""
    if len(data) > MAX_RECORD_BYTES:
        detail = f"found {len(data):,} bytes of JSON, at most {MAX_RECORD_BYTES:,} are parsed"
        raise RowError("record_too_large", detail)
    try:
        value = json.loads(
            data, object_pairs_hook=_reject_duplicate_keys, parse_constant=_not_finite
        )
    except RecursionError as error:
        raise RowError("record_malformed", _TOO_DEEP) from error
    except ValueError as error:
        raise RowError("record_malformed", f"not JSON: {error}") from error
    check_values(value)
    return value


def check_values(value: Any) -> None:
    """Check that parsed values can be written as JSON again: finite and not nested too deeply."""
    pending: list[tuple[Any, int]] = [([value], 0)]
    while pending:
        container, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise RowError("record_malformed", _TOO_DEEP)
        for item in container.values() if isinstance(container, dict) else container:
            if isinstance(item, dict | list):
                pending.append((item, depth + 1))
            elif isinstance(item, float) and not math.isfinite(item):
                _not_finite(str(item))


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise RowError("record_malformed", f"the key {duplicate!r} occurs twice in one object")
    return record


def _not_finite(text: str) -> Any:
    raise RowError("meta_not_finite", f"found {text}, which JSON cannot represent")


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def decode_caption(data: bytes) -> str:
    """Decode the bytes of a caption file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("caption_not_utf8", str(error)) from error


@dataclass(kw_only=True)
class Conversation:
    """Turns of a record, and the images that they name themselves."""

    turns: tuple[Turn, ...]

    images: list[Any] = field(default_factory=list)
    """What the parts of type image say about their images, in order; they refer to these. Empty if
    the parts only say where an image stands."""

    is_caption: bool = False
    """Whether it is a caption and no conversation."""

    has_parts: bool = False
    """Whether a content is a list of parts, which say themselves where images stand."""

    def bound(self, num_images: int, *, has_list: bool) -> tuple[Turn, ...]:
        """Return the turns with image marks bound to images.

        Args:
            num_images: Images of the record.
            has_list: Whether the record has a list of images; a caption beside a single one is
                text, whatever it holds.

        Raises:
            RowError: There are more or fewer places than images.
        """
        if self.is_caption and not has_list:
            return self.turns
        if not num_images and any(turn.image_indices for turn in self.turns):
            raise RowError("image_missing", "the text has places of images, the record no image")
        return bind_marks(self.turns, num_images, has_marks=not self.has_parts)


def take_turns(record: dict[str, Any]) -> Conversation | None:
    """Pop the text of a record and return it; None if it has no text.

    The first non-null key of `TURN_KEYS`, then of `CAPTION_KEYS`, is used.
    """
    for key in TURN_KEYS:
        if record.get(key) is not None:
            conversation = parse_turns(record.pop(key))
            _refuse_fields(record, _UNSUPPORTED_KEYS, "the conversation")
            turns = _with_system(conversation.turns, record.pop("system", None))
            return replace(conversation, turns=turns)
    for key in CAPTION_KEYS:
        if record.get(key) is not None:
            text = record.pop(key)
            if isinstance(text, bytes):
                text = decode_caption(text)
            if not isinstance(text, str):
                raise RowError("record_malformed", f"{key} is {type(text).__name__}, not text")
            return Conversation(turns=caption_turns(text), is_caption=True)
    return None


def parse_turns(value: Any) -> Conversation:
    """Parse a conversation with LLaVA's keys (from, value) or chat keys (role, content).

    A content is text, in which marks may stand for images, or a list of parts of type text and
    image, as the APIs of chat models take them.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RowError("conversation_malformed", "found no list of turns")
    images: list[Any] = []
    turns = tuple(_parse_turn(index, turn, images) for index, turn in enumerate(value))
    num_named = sum(image is not None for image in images)
    if 0 < num_named < len(images):
        detail = f"{num_named} of {len(images)} parts of type image name their image"
        raise RowError("conversation_malformed", detail)
    has_parts = any(isinstance(_content(turn), list | tuple) for turn in value)
    return Conversation(
        turns=turns,
        images=images if num_named else [],
        is_caption=not has_parts and [t.role for t in turns if t.role != "system"] == ["assistant"],
        has_parts=has_parts,
    )


def _with_system(turns: tuple[Turn, ...], system: Any) -> tuple[Turn, ...]:
    """Begin a conversation with the system turn that the record has beside it."""
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        detail = f"system is {type(system).__name__}, expected text"
        raise RowError("conversation_malformed", detail)
    if turns[0].role != "system":
        return (Turn(role="system", content=system), *turns)
    if turns[0].content != system:
        detail = "the record has a system text and another one in its first turn"
        raise RowError("conversation_malformed", detail)
    return turns


def _refuse_fields(fields: Mapping[str, Any], names: Sequence[str], owner: str) -> None:
    for name in names:
        if fields.get(name) not in (None, "", [], {}, "[]"):
            raise RowError(
                "conversation_unsupported",
                f"{owner} has {name}, which consomme cannot show to a model; remove the field, or"
                " leave the sample out",
            )


def _take_mask(index: int, turn: Mapping[str, Any], role: str) -> bool:
    """Return whether a turn is labelled: an assistant's, unless a key says no; never another's."""
    # Consomme's own key is true of turns that are never labelled.
    is_labelled = role == "assistant" and turn.get("is_labelled") is not False
    for name in _MASK_KEYS:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1) or (value and role != "assistant"):
            raise RowError(
                "conversation_unsupported",
                f"turn {index}, by the {role}, has {name}={value!r}; consomme learns or leaves out"
                " whole turns of the assistant, and no others; split the conversation, or remove"
                " the field",
            )
        is_labelled = is_labelled and bool(value)
    return is_labelled or role != "assistant"


def _parse_turn(index: int, turn: Any, images: list[Any]) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError("conversation_malformed", f"turn {index} is not an object")
    role = turn.get("from", turn.get("role"))
    content = _content(turn)
    if isinstance(role, str) and role in _CALL_ROLES:
        detail = (
            f"turn {index} is by {role!r}: a call of a tool, which each chat template writes in"
            " another way; write it as text of the assistant, or leave the sample out"
        )
        raise RowError("conversation_unsupported", detail)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("conversation_malformed", f"turn {index} is by {role!r}")
    _refuse_fields(turn, _UNSUPPORTED_TURN_KEYS, f"turn {index}")
    role = _ROLES[role]
    if isinstance(content, list | tuple):
        content = content_of(_parse_parts(index, content, turn.get("image_indices"), images))
    if not isinstance(content, str | tuple):
        raise RowError("conversation_malformed", f"turn {index} has no text")
    return Turn(role=role, content=content, is_labelled=_take_mask(index, turn, role))


def _content(turn: Mapping[str, Any]) -> Any:
    return turn.get("value", turn.get("content"))


def _parse_parts(
    index: int, parts: Sequence[Any], image_indices: Any, images: list[Any]
) -> list[str | ImageRef]:
    """Parse a list of content parts, and append what they say about images to `images`.

    Args:
        index: Of the turn.
        parts: Texts, or objects of type text and image.
        image_indices: Index of the image of each part of type image; None counts them.
        images: What the parts of earlier turns say.
    """
    given = list(image_indices) if isinstance(image_indices, list | tuple) else None
    parsed: list[str | ImageRef] = []
    for part in parts:
        if isinstance(part, str):
            parsed.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError("conversation_malformed", f"turn {index} has a part that is no object")
        kind = part.get("type") or ("text" if part.get("text") is not None else "")
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            parsed.append(part["text"])
        elif kind in ("image", "image_url", "input_image"):
            named = next((part[k] for k in IMAGE_PART_KEYS if part.get(k) is not None), None)
            at = part.get("index") if given is None else (given.pop(0) if given else None)
            if named is None and isinstance(at, int) and at >= 0:
                parsed.append(ImageRef(at))
            else:
                parsed.append(ImageRef(len(images)))
                images.append(named)
        elif kind in ("video", "video_url", "input_video"):
            detail = (
                f"turn {index} has a video, which consomme does not read; write its frames as"
                " images, in their order"
            )
            raise RowError("video_unsupported", detail)
        else:
            detail = f"turn {index} has a part of type {kind!r}, expected text or image"
            raise RowError("conversation_unsupported", detail)
    return parsed


def check_sample(sample: Sample, sample_ids: Container[str]) -> None:
    """Check what every later stage relies on.

    Args:
        sample: A parsed sample.
        sample_ids: Ids of the accepted samples before it in the unit.

    Raises:
        RowError: The sample is bad.
    """
    turns = sample.turns
    for image in sample.images:
        if not image.data:
            raise RowError("image_empty", f"{image.name} has 0 bytes")
        _check_name(image.name)
    _check_order([turn.role for turn in turns])
    if not any(turn.role == "assistant" and turn.is_labelled for turn in turns):
        detail = "no turn of the assistant is labelled, so nothing would be learned or scored"
        raise RowError("conversation_malformed", detail)
    if all(unicodedata.category(char) in _INVISIBLE for char in sample.caption):
        raise RowError("caption_empty", "the text is empty or white space")
    try:
        num_bytes = sum(len(turn.text.encode("utf-8")) for turn in turns)
    except UnicodeEncodeError as error:
        raise RowError("caption_not_utf8", str(error)) from error
    if num_bytes > MAX_TEXT_BYTES:
        detail = f"found {num_bytes:,} bytes of text, at most {MAX_TEXT_BYTES:,} are taken"
        raise RowError("caption_too_long", detail)
    if any("\0" in turn.text for turn in turns):
        raise RowError("caption_not_text", "the text holds NUL characters")
    _check_name(sample.sample_id)
    if sample.sample_id in sample_ids:
        raise RowError("duplicate_key", "an earlier sample of this unit has the same key")


def _check_name(name: str) -> None:
    if not name or not is_utf8(name):
        raise RowError("record_malformed", f"the name {name!r} is empty or not UTF-8")
    if len(name.encode("utf-8")) > MAX_NAME_BYTES:
        detail = f"a name of more than {MAX_NAME_BYTES:,} bytes, begins {name[:40]!r}"
        raise RowError("record_malformed", detail)


_NEXT_ROLES = {
    "system": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Roles that may follow a role; a conversation ends with the assistant."""


def _check_order(roles: list[str]) -> None:
    """Check roles: user, then assistant, again and again; or one assistant turn.

    A system turn may come first; results of tools may come between two turns of the assistant.
    """
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    is_in_order = bool(dialogue) and all(
        after in _NEXT_ROLES[before] for before, after in itertools.pairwise(dialogue)
    )
    begins = dialogue == ["assistant"] or dialogue[:1] == ["user"]
    if is_in_order and begins and dialogue[-1] == "user" and len(dialogue) > 1:
        raise RowError(
            "conversation_malformed",
            "the last turn is the user's and has no answer; remove it, or answer it",
        )
    if not (is_in_order and begins and dialogue[-1] == "assistant"):
        raise RowError(
            "conversation_malformed",
            f"found {', '.join(roles)}; expected user and assistant alternating, assistant last",
        )


def take_id(record: dict[str, Any], fallback: str) -> str:
    """Pop the id of a record and return it; `fallback` if it has none."""
    for key in ID_KEYS:
        value = record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(record.pop(key))
    return fallback


def is_utf8(text: str) -> bool:
    """Check that a text can be encoded as UTF-8 (lone surrogates cannot)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def refuse_encoded(start: bytes, shard: str, expected: str) -> None:
    """Refuse a file that is compressed or UTF-16, going by its first bytes.

    Args:
        start: At least the first six bytes.
        shard: URL of the file.
        expected: Description of the expected content.

    Raises:
        DataError: The file is compressed or UTF-16, so its rows cannot be addressed by offset.
    """
    for magic, name, remedy in _ENCODED:
        if start.startswith(magic):
            raise DataError(f"{shard}: found a {name} file, expected {expected}; {remedy}")


_ENCODED: Sequence[tuple[bytes, str, str]] = (
    (b"\x1f\x8b", "gzip", "decompress it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "decompress it"),
    (b"BZh", "bzip2", "decompress it"),
    (b"\xfd7zXZ", "xz", "decompress it"),
    (b"\xff\xfe", "UTF-16", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "write it as UTF-8"),
)

_INVISIBLE = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))
"""Unicode categories of control, format and space characters."""
