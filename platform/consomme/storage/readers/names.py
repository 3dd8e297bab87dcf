"""The names under which data sets keep images, texts and ids, and those that a recipe gives.

Records are brought to the canonical names first: what a recipe names is moved there, and what else
could have been taken for the same part of a sample is set aside, as metadata.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from consomme.storage.reading import Reading, as_names

IMAGE_KEYS = ("image", "image_path", "file_name", "images")
"""Keys of a record that may hold an image or a list of them, in order of preference."""

COMMON_IMAGE_KEYS = (
    *("jpg", "jpeg", "png", "webp", "img", "image_file", "img_path", "filename", "filepath"),
    "image_bytes",
)
"""More of them, which are looked at in any case of letters."""

TURN_KEYS = ("turns", "conversations", "messages")
"""Keys of a record that may hold a conversation, in order of preference."""

COMMON_TURN_KEYS = ("conversation", "texts")
"""More of them; `texts` is The Cauldron's list of questions with their answers."""

CAPTION_KEYS = ("caption", "text")
"""Keys of a record that may hold a caption, in order of preference."""

COMMON_CAPTION_KEYS = ("txt", "captions", "sentences", "alt_text", "en_text")
"""More of them."""

QUESTION_KEYS = (
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("prompt", "response"),
)
"""Keys of a question and its answer, in order of preference."""

ID_KEYS = ("sample_id", "id", "key", "__key__")
"""Keys of a record that may hold the sample id, in order of preference."""

_CANONICAL = {
    "image": "image",
    "caption": "caption",
    "conversation": "conversations",
    "question": "question",
    "answer": "answer",
    "system": "system",
    "id": "sample_id",
    "url": "url",
}

_TEXTS = (
    *(*TURN_KEYS, *COMMON_TURN_KEYS, *CAPTION_KEYS, *COMMON_CAPTION_KEYS),
    *(key for pair in QUESTION_KEYS for key in pair),
)

_RIVALS: Mapping[str, tuple[str, ...]] = {
    "image": (*IMAGE_KEYS, *COMMON_IMAGE_KEYS),
    "caption": _TEXTS,
    "conversation": _TEXTS,
    "question": _TEXTS,
    "answer": _TEXTS,
    "system": ("system",),
    "id": ID_KEYS,
    "url": (),
}
"""Names that would be taken for a part of a sample if the recipe named no column for it."""


def by_names(record: dict[str, Any], reading: Reading) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bring a record to the canonical names.

    Args:
        record: Of any format; not changed.
        reading: Names columns.

    Returns:
        The record, in which what the recipe names has the canonical names; and what the recipe
        does not name, though it could be taken for the same, which is metadata.
    """
    record = dict(record)
    named: dict[str, Any] = {}
    for part, names in reading.columns.items():
        values = [_pop(record, name) for name in as_names(names)]
        if not isinstance(names, str):
            flat = [one for value in values for one in _as_list(value)]
            named["images"] = flat
        else:
            named[_CANONICAL[part]] = values[0]
    aside = {}
    lowered = {key.lower(): key for key in record}
    for part in reading.columns:
        for rival in _RIVALS[part]:
            for key in {rival, lowered.get(rival, rival)}:
                if key in record:
                    aside[key] = record.pop(key)
    present = {key: value for key, value in named.items() if value is not None}
    return {**record, **present}, aside


def id_of(record: dict[str, Any], reading: Reading) -> str | None:
    """Return the id of a record; None if it has none.

    Args:
        record: Of any format; not changed.
        reading: May name the column of ids.
    """
    name = reading.columns.get("id")
    values = [_pop(dict(record), name)] if isinstance(name, str) else map(record.get, ID_KEYS)
    for value in values:
        if isinstance(value, float) and value.is_integer():
            # Tables with a null among the ids have them as floats.
            return str(int(value))
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def missing_columns(names: Iterable[str], reading: Reading) -> list[str]:
    """List the columns that a recipe names and a table does not have."""
    known = set(names)
    wanted = [name for some in reading.columns.values() for name in as_names(some)]
    return [name for name in wanted if name not in known and name.partition(".")[0] not in known]


def find_key(record: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the first key of a record that has a value, whatever its case of letters."""
    lowered = {key.lower(): key for key in reversed(list(record)) if record[key] is not None}
    return next((lowered[key] for key in keys if key in lowered), None)


def mapping_hint(names: Iterable[str]) -> str:
    """Say how a recipe names columns, by those that were found.

    Args:
        names: The columns or keys.
    """
    found = [name for name in names if not name.startswith("_")]
    image = _nearest(found, ("image", "img", "pic", "photo", "jpg", "png", "file", "path", "url"))
    caption = _nearest(
        [name for name in found if name != image],
        ("caption", "text", "title", "desc", "label", "prompt", "answer", "txt"),
    )
    return (
        "say in the recipe which is which, as in reading.columns:"
        f" {{image: {image or 'COLUMN'}, caption: {caption or 'COLUMN'}}}"
    )


def _nearest(names: Iterable[str], words: Iterable[str]) -> str | None:
    known = list(names)
    return next((name for word in words for name in known if word in name.lower()), None)


def _pop(record: dict[str, Any], name: str) -> Any:
    """Take a value out of a record, by its name or by the path of names to it."""
    if name in record:
        return record.pop(name)
    value: Any = record
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
