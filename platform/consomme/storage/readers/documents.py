"""Read documents of texts with images in them: OBELICS and MMC4.

| format | texts | images |
|---|---|---|
| OBELICS, MINT-1T | `texts`: list with nulls | `images`: as long, null where a text is |
| MMC4 | `text_list` | `image_info[].image_name`, before the text `matched_text_index` |

A document becomes one turn of the assistant with its images where they stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.storage.readers.row import RowError

_TEXTS, _IMAGES = "texts", "images"
_SENTENCES, _MATCHES = "text_list", "image_info"
_LIST = (list, tuple)
_BETWEEN_TEXTS = "\n\n"


def as_document(record: dict[str, Any]) -> dict[str, Any]:
    """Bring a document to the names of consomme; any other record is returned as it is.

    Args:
        record: Of any format; not changed.

    Raises:
        RowError: It is a document whose parts do not belong together.
    """
    texts, images = record.get(_TEXTS), record.get(_IMAGES)
    if isinstance(texts, _LIST) and isinstance(images, _LIST) and _is_interleaved(texts):
        if len(texts) != len(images):
            detail = f"found {len(texts)} texts and {len(images)} images, expected as many of each"
            raise RowError("conversation_malformed", detail)
        places = [(image, text) for image, text in zip(images, texts, strict=True) if image or text]
        return _document(record, places, (_TEXTS, _IMAGES))
    sentences, matches = record.get(_SENTENCES), record.get(_MATCHES)
    if isinstance(sentences, _LIST) and isinstance(matches, _LIST):
        return _document(record, _matched(sentences, matches), (_SENTENCES, _MATCHES))
    return record


def _is_interleaved(texts: Sequence[Any]) -> bool:
    """Whether texts are plain: The Cauldron has questions with answers under the same name."""
    return all(text is None or isinstance(text, str) for text in texts)


def _matched(sentences: Sequence[Any], matches: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Place the images of MMC4 before the sentences that they were matched with."""
    at: dict[int, list[Any]] = {}
    for match in matches:
        if not isinstance(match, Mapping):
            raise RowError("record_malformed", f"{_MATCHES} has an element that is no object")
        place = match.get("matched_text_index")
        name = next((match[k] for k in _IMAGE_NAMES if match.get(k)), None)
        if name is None:
            raise RowError("image_missing", f"{_MATCHES} has an element without image_name")
        if not isinstance(place, int) or not 0 <= place < len(sentences):
            detail = f"matched_text_index is {place!r}; there are {len(sentences)} texts"
            raise RowError("conversation_malformed", detail)
        at.setdefault(place, []).append(name)
    places: list[tuple[Any, Any]] = []
    for number, sentence in enumerate(sentences):
        places += [(image, None) for image in at.get(number, ())]
        places.append((None, sentence))
    return places


_IMAGE_NAMES = ("image", "image_name", "raw_url", "url")


def _document(
    record: dict[str, Any], places: Sequence[tuple[Any, Any]], taken: Sequence[str]
) -> dict[str, Any]:
    """Write a document as a record with a turn of parts.

    Args:
        record: The document.
        places: Images and texts in their order, both or one of each pair.
        taken: Keys of the record that the turn is made of.
    """
    images: list[Any] = []
    parts: list[dict[str, Any]] = []
    for image, text in places:
        if image:
            parts.append({"type": "image", "index": len(images)})
            images.append(image)
        if text is not None and not isinstance(text, str):
            detail = f"a text of the document is {type(text).__name__}"
            raise RowError("conversation_malformed", detail)
        if text:
            # Texts are paragraphs; between two of them nothing would stand otherwise.
            is_after_text = bool(parts) and parts[-1]["type"] == "text"
            parts.append({"type": "text", "text": f"{_BETWEEN_TEXTS * is_after_text}{text}"})
    # Without an image it is a text of nothing, and refused as a caption without an image is.
    content = parts if images else "".join(part["text"] for part in parts)
    rest = {key: value for key, value in record.items() if key not in taken}
    turns = [{"role": "assistant", "content": content}]
    return {**rest, "images": images, "turns": turns}
