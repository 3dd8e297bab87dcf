"""Parse captions and conversations: LLaVA, ShareGPT, chat messages, questions with answers."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consomme.base.sample import ImageRef, Turn, caption_turns, content_of
from consomme.storage.readers.marks import bind_marks
from consomme.storage.readers.names import (
    CAPTION_KEYS,
    COMMON_CAPTION_KEYS,
    COMMON_TURN_KEYS,
    QUESTION_KEYS,
    TURN_KEYS,
    find_key,
)
from consomme.storage.readers.row import RowError
from consomme.storage.readers.text import decode_caption, load_json
from consomme.storage.reading import Reading

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
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

_NAMED_IMAGE = re.compile(r"(?:Picture ?\d*: ?)?<img>([^<>]{1,4096})</img>\n?")
"""An image in the text of Qwen-VL's data."""

_ASKED, _ANSWERED = "user", "assistant"

_MASK_KEYS = ("weight", "loss", "train", "loss_weight")
"""Keys of a turn that say whether it is trained on, as OpenAI, ms-swift and axolotl have them."""

IMAGE_PART_KEYS = ("image", "image_url", "url", "path")
"""Keys of a content part of type image that may say which image it is."""


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


def take_texts(
    record: dict[str, Any], reading: Reading, sample_id: str
) -> list[Conversation | RowError] | None:
    """Pop the text of a record and return it as often as it is a sample; None if it has no text.

    The first non-null key of `TURN_KEYS`, then of `CAPTION_KEYS`, is used; then other common names.

    Args:
        record: Of any format, with canonical names.
        reading: Says what a list of captions becomes.
        sample_id: Chooses one of several captions.
    """
    for key in TURN_KEYS:
        if record.get(key) is not None:
            return [_conversation(record, key)]
    for key in CAPTION_KEYS:
        if record.get(key) is not None:
            return _captions(record.pop(key), key, reading, sample_id)
    common = find_key(record, COMMON_TURN_KEYS)
    if common is not None:
        return [_conversation(record, common)]
    common = find_key(record, (*CAPTION_KEYS, *COMMON_CAPTION_KEYS))
    if common is not None:
        return _captions(record.pop(common), common, reading, sample_id)
    conversation = _question_and_answer(record)
    return None if conversation is None else [conversation]


def with_named_images(conversation: Conversation) -> Conversation:
    """Take the images that a text names itself, as Qwen-VL's `<img>images/1.png</img>` does."""
    images: list[Any] = []
    turns = []
    for turn in conversation.turns:
        if not isinstance(turn.content, str) or not _NAMED_IMAGE.search(turn.content):
            turns.append(turn)
            continue
        # Every second part is what the parentheses hold: a path.
        pieces = _NAMED_IMAGE.split(turn.content)
        parts: list[str | ImageRef] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                parts.append(ImageRef(len(images)))
                images.append(piece.strip())
            else:
                parts.append(piece)
        turns.append(replace(turn, content=content_of(parts)))
    if not images:
        return conversation
    return replace(conversation, turns=tuple(turns), images=images, has_parts=True)


def num_texts(record: Mapping[str, Any], reading: Reading) -> int:
    """Count the samples of a record, by its list of captions alone: at least one."""
    if reading.captions != "each":
        return 1
    if any(record.get(key) is not None for key in TURN_KEYS):
        return 1
    key = next((key for key in CAPTION_KEYS if record.get(key) is not None), None)
    if key is None and find_key(record, COMMON_TURN_KEYS) is None:
        key = find_key(record, (*CAPTION_KEYS, *COMMON_CAPTION_KEYS))
    value = None if key is None else record[key]
    return max(1, len(value)) if isinstance(value, list | tuple) else 1


def _captions(
    value: Any, key: str, reading: Reading, sample_id: str
) -> list[Conversation | RowError]:
    """Return the caption of a record, or those that the recipe chooses of a list."""
    if not isinstance(value, list | tuple):
        return [_caption(value, key)]
    if not value:
        return [RowError("caption_missing", f"{key} is an empty list")]
    if reading.captions == "each":
        return [_caption(one, key) for one in value]
    if len(value) == 1 or reading.captions == "first":
        return [_caption(value[0], key)]
    if reading.captions == "random":
        digest = hashlib.sha256(f"caption of {sample_id}".encode("utf-8", "surrogatepass")).digest()
        return [_caption(value[int.from_bytes(digest[:8], "big") % len(value)], key)]
    detail = f"{key} is a list of {len(value)}; say reading.captions: each, first or random"
    return [RowError("record_malformed", detail)]


def _caption(text: Any, key: str) -> Conversation | RowError:
    if isinstance(text, Mapping):
        # COCO and Karpathy's splits have objects with the text and its tokens.
        text = next((text[k] for k in ("raw", "caption", "text") if text.get(k) is not None), text)
    if isinstance(text, bytes):
        try:
            text = decode_caption(text)
        except RowError as problem:
            return problem
    if text is None:
        return RowError("caption_missing", f"{key} is null")
    if not isinstance(text, str):
        return RowError("record_malformed", f"{key} is {type(text).__name__}, not text")
    return Conversation(turns=caption_turns(text), is_caption=True)


def _conversation(record: dict[str, Any], key: str) -> Conversation | RowError:
    try:
        value = record.pop(key)
        if isinstance(value, str) and value.lstrip()[:1] == "[":
            value = load_json(value)
        conversation = parse_turns(value)
        _refuse_fields(record, _UNSUPPORTED_KEYS, "the conversation")
        turns = _with_system(conversation.turns, record.pop("system", None))
    except RowError as problem:
        return problem
    return replace(conversation, turns=turns)


def _question_and_answer(record: dict[str, Any]) -> Conversation | RowError | None:
    """Pop a question with its answer, as VQA tables and Alpaca's records have them."""
    for asked, answered in QUESTION_KEYS:
        keys = find_key(record, (asked,)), find_key(record, (answered,))
        if keys[0] is None or keys[1] is None:
            continue
        question, answer = record.pop(keys[0]), record.pop(keys[1])
        more = record.pop("input", None) if asked == "instruction" else None
        texts = (question, answer) if more in (None, "") else (question, more, answer)
        for key, text in zip((*keys, "input"), (question, answer, more or ""), strict=False):
            if not isinstance(text, str):
                detail = f"{key} is {type(text).__name__}, not text"
                return RowError("conversation_malformed", detail)
        turns: tuple[Turn, ...] = (
            Turn(role="user", content="\n".join(texts[:-1])),
            Turn(role="assistant", content=answer),
        )
        try:
            turns = _with_history(turns, record.pop("history", None))
            return Conversation(turns=_with_system(turns, record.pop("system", None)))
        except RowError as problem:
            return problem
    return None


def _with_history(turns: tuple[Turn, ...], history: Any) -> tuple[Turn, ...]:
    """Begin a question and its answer with the earlier ones, pairs of texts."""
    if not history:
        return turns
    pairs = list(history)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise RowError("conversation_malformed", "history is no list of pairs of texts")
    earlier: list[Turn] = []
    for question, answer in pairs:
        if not (isinstance(question, str) and isinstance(answer, str)):
            raise RowError("conversation_malformed", "history has a pair that is not of texts")
        earlier.append(Turn(role="user", content=question))
        earlier.append(Turn(role="assistant", content=answer))
    return (*earlier, *turns)


def parse_turns(value: Any) -> Conversation:
    """Parse a conversation with LLaVA's keys (from, value) or chat keys (role, content).

    A content is text, in which marks may stand for images, or a list of parts of type text and
    image, as the APIs of chat models take them.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RowError("conversation_malformed", "found no list of turns")
    if all(isinstance(turn, Mapping) and _ASKED in turn and _ANSWERED in turn for turn in value):
        # The Cauldron's: each element is a question with its answer.
        value = [
            {"role": role, "content": pair[role]} for pair in value for role in (_ASKED, _ANSWERED)
        ]
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
    if isinstance(role, str) and role.lower() in _ROLES:
        role = role.lower()
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
