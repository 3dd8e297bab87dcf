"""Shared by all formats: parse captions, conversations and JSON, and check samples."""

import json
import math
import unicodedata
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import DataError
from consomme.base.sample import Sample, Turn, caption_turns
from consomme.base.sample import printable as printable

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
}


_TOOL_ROLES = frozenset(
    {"tool", "tools", "function", "function_call", "tool_call", "observation", "ipython"}
)

_UNSUPPORTED_KEYS = ("tools", "functions")
"""Keys beside a conversation that change what a chat template writes."""

_UNSUPPORTED_TURN_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys of a turn that are part of what was said."""

_MASK_KEYS = ("weight", "loss", "train", "loss_weight")
"""Keys of a turn that say whether it is trained on, as OpenAI, ms-swift and axolotl have them."""


class RowError(Exception):
    """A bad row; the reader turns it into a reject.

    Args:
        reason: One of `consomme.base.sample.REJECT_REASONS`.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = printable(detail)


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row before it is parsed."""

    sample_id: str
    """Id of the reject if the row cannot be parsed."""

    reference: str
    """Location of its bytes: `shard@offset+length` or `shard#row`."""

    parse: Callable[[], Sample]
    """Parses the row; raises `RowError`."""


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


def take_turns(record: dict[str, Any]) -> tuple[Turn, ...] | None:
    """Pop the text of a record and return it as turns; None if it has no text.

    The first non-null key of `TURN_KEYS`, then of `CAPTION_KEYS`, is used.
    """
    for key in TURN_KEYS:
        if record.get(key) is not None:
            turns = parse_turns(record.pop(key))
            _refuse_fields(record, _UNSUPPORTED_KEYS, "the conversation")
            return _with_system(turns, record.pop("system", None))
    for key in CAPTION_KEYS:
        if record.get(key) is not None:
            text = record.pop(key)
            if isinstance(text, bytes):
                text = decode_caption(text)
            if not isinstance(text, str):
                raise RowError("record_malformed", f"{key} is {type(text).__name__}, not text")
            return caption_turns(text)
    return None


def parse_turns(value: Any) -> tuple[Turn, ...]:
    """Parse a conversation with LLaVA's keys (from, value) or chat keys (role, content).

    The `<image>` placeholder of the first user turn is removed: the chat template places the image
    there. What a turn says about how to train on it is accepted if it says what is done anyway.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RowError("conversation_malformed", "found no list of turns")
    turns: list[Turn] = []
    for index, turn in enumerate(value):
        is_later = any(before.role == "user" for before in turns)
        turns.append(_parse_turn(index, turn, is_later_question=is_later))
    return tuple(turns)


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


def _check_masks(index: int, turn: Mapping[str, Any], role: str) -> None:
    """Accept what is done anyway: the assistant's turns are trained on, all alike; no others."""
    for name in _MASK_KEYS:
        value = turn.get(name)
        if value is not None and (value not in (0, 1) or bool(value) != (role == "assistant")):
            raise RowError(
                "conversation_unsupported",
                f"turn {index}, by the {role}, has {name}={value!r}; consomme trains on all turns"
                " of the assistant alike, and on no others; split the conversation, or remove the"
                " field",
            )


def _parse_turn(index: int, turn: Any, *, is_later_question: bool) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError("conversation_malformed", f"turn {index} is not an object")
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    if isinstance(role, str) and role in _TOOL_ROLES:
        detail = f"turn {index} is by {role!r}; consomme trains on no tools"
        raise RowError("conversation_unsupported", detail)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("conversation_malformed", f"turn {index} is by {role!r}")
    _refuse_fields(turn, _UNSUPPORTED_TURN_KEYS, f"turn {index}")
    if not isinstance(content, str):
        raise RowError("conversation_malformed", f"turn {index} has no text")
    _check_masks(index, turn, _ROLES[role])
    # Only user turns refer to the image; in an answer or caption, `<image>` is plain text.
    if _ROLES[role] == "user" and "<image>" in content:
        if content.count("<image>") > 1:
            raise RowError("conversation_malformed", f"turn {index} refers to several images")
        if is_later_question:
            detail = f"turn {index} refers to an image; expected it in the first question only"
            raise RowError("conversation_malformed", detail)
        content = content.replace("<image>", "").strip()
    return Turn(role=_ROLES[role], content=content)


def check_sample(sample: Sample, sample_ids: Container[str]) -> None:
    """Check what every later stage relies on.

    Args:
        sample: A parsed sample.
        sample_ids: Ids of the accepted samples before it in the unit.

    Raises:
        RowError: The sample is bad.
    """
    turns = sample.turns
    if not sample.image:
        raise RowError("image_empty", f"{sample.image_name} has 0 bytes")
    _check_order([turn.role for turn in turns])
    if all(unicodedata.category(char) in _INVISIBLE for char in sample.caption):
        raise RowError("caption_empty", "the text is empty or white space")
    try:
        num_bytes = sum(len(turn.content.encode("utf-8")) for turn in turns)
    except UnicodeEncodeError as error:
        raise RowError("caption_not_utf8", str(error)) from error
    if num_bytes > MAX_TEXT_BYTES:
        detail = f"found {num_bytes:,} bytes of text, at most {MAX_TEXT_BYTES:,} are taken"
        raise RowError("caption_too_long", detail)
    if any("\0" in turn.content for turn in turns):
        raise RowError("caption_not_text", "the text holds NUL characters")
    _check_name(sample.sample_id)
    _check_name(sample.image_name)
    if sample.sample_id in sample_ids:
        raise RowError("duplicate_key", "an earlier sample of this unit has the same key")


def _check_name(name: str) -> None:
    if not name or not is_utf8(name):
        raise RowError("record_malformed", f"the name {name!r} is empty or not UTF-8")
    if len(name.encode("utf-8")) > MAX_NAME_BYTES:
        detail = f"a name of more than {MAX_NAME_BYTES:,} bytes, begins {name[:40]!r}"
        raise RowError("record_malformed", detail)


def _check_order(roles: list[str]) -> None:
    """Check roles: optional system, then user and assistant alternating; or one assistant turn."""
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * (len(dialogue) // 2)
    if len(dialogue) > 1 and dialogue[:-1] == expected and dialogue[-1] == "user":
        raise RowError(
            "conversation_malformed",
            "the last turn is the user's and has no answer; remove it, or answer it",
        )
    if dialogue != ["assistant"] and (not dialogue or dialogue != expected):
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
