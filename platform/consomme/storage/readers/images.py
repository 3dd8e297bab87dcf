"""Take the images of a record: paths, encoded bytes, or structs of both, one or a list."""

import errno
import re
from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.sample import ImageFile, Turn
from consomme.storage.readers.row import RowError
from consomme.storage.readers.text import MAX_SAMPLE_BYTES, Conversation, printable, take_turns
from consomme.storage.stores.regular import UnsafeFileError
from consomme.storage.stores.store import Store, is_safe_path

IMAGE_KEYS = ("image", "image_path", "file_name", "images")
"""Keys of a record that may hold an image or a list of them, in order of preference."""

_VIDEO_KEYS = ("video", "videos", "video_path")
_VIDEO_MARK = "<video>"

_WEB = re.compile(r"https?://", re.IGNORECASE)
_PATH_ERRORS = {
    getattr(errno, name)
    for name in "ENOENT EISDIR ENOTDIR ENAMETOOLONG EINVAL ELOOP EACCES EPERM".split()
}
"""Errors that concern one path. Any other, such as a lost connection, concerns the storage and must
not be reported as a missing image."""


def take_images_and_turns(
    record: dict[str, Any], store: Store, sample_id: str, text_keys: Sequence[str]
) -> tuple[tuple[ImageFile, ...], tuple[Turn, ...]]:
    """Pop the images and the text of a record; marks in the text are bound to the images.

    Args:
        record: Of any format that names its images.
        store: Reads images by paths relative to the record's folder.
        sample_id: Names images without a name.
        text_keys: Keys of texts that were looked for, for the message if there is none.

    Raises:
        RowError: An image is missing, the text is, or they do not belong together.
    """
    named, has_list = _take(record)
    name = record.pop("image_name", None)
    images = tuple(_read(value, store, sample_id, name) for value in named)
    conversation = take_turns(record)
    if conversation is None:
        found = ", ".join(sorted(record)) or "nothing"
        detail = f"found {found} only; expected one of {', '.join(text_keys)}"
        raise RowError("caption_missing", detail)
    if conversation.images:
        if images:
            detail = f"the record has {len(images)} images and the turns name others"
            raise RowError("conversation_malformed", detail)
        images = tuple(_read(value, store, sample_id, None) for value in conversation.images)
        has_list = True
    _check_present(images, record, conversation)
    return images, conversation.bound(len(images), has_list=has_list)


def _check_present(
    images: Sequence[ImageFile], record: Mapping[str, Any], conversation: Conversation
) -> None:
    """Refuse a caption of nothing, and videos; a conversation may be of text alone.

    Beside images, the name of a video that nothing in the text stands for is metadata: images may
    be its frames.
    """
    is_shown = any(_VIDEO_MARK in turn.text for turn in conversation.turns)
    for key in _VIDEO_KEYS:
        value = record.get(key)
        if value and (not images or is_shown or _has_bytes(value)):
            detail = f"the record has {key}; write its frames as images, in their order"
            raise RowError("video_unsupported", detail)
    if not images and conversation.is_caption:
        detail = (
            f"the record has none of {', '.join(IMAGE_KEYS)}; a sample of text alone is a"
            " conversation with a user's turn"
        )
        raise RowError("image_missing", detail)


def _has_bytes(value: Any) -> bool:
    """Whether a value of a record holds a file, and not only its name."""
    if isinstance(value, Mapping):
        return any(isinstance(part, bytes) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_has_bytes(part) for part in value)
    return isinstance(value, bytes)


def _take(record: dict[str, Any]) -> tuple[list[Any], bool]:
    """Pop what a record says about its images; also return whether it is a list."""
    for key in IMAGE_KEYS:
        value = record.get(key)
        if value is None or value == [] or (isinstance(value, Mapping) and not any(value.values())):
            # Absent: a struct of nulls is how Parquet has no image.
            if key in record and (value is not None or key == "images"):
                del record[key]
            continue
        del record[key]
        if not isinstance(value, list | tuple):
            return [value], key == "images"
        if any(one is None for one in value):
            raise RowError("image_missing", f"{key}: {value.index(None)} of {len(value)} is null")
        return list(value), True
    return [], False


def _read(value: Any, store: Store, sample_id: str, name: Any) -> ImageFile:
    """Read one image."""
    path: Any = value
    if isinstance(value, Mapping):
        path = next((value[k] for k in ("path", "url", "image") if value.get(k)), None)
        if isinstance(value.get("bytes"), bytes):
            return ImageFile(data=value["bytes"], name=str(name or _text(path) or sample_id))
    if isinstance(value, bytes):
        return ImageFile(data=value, name=str(name or sample_id))
    path = _text(path)
    if not isinstance(path, str) or not path:
        found = "nothing" if value == "" else type(value).__name__
        raise RowError("record_malformed", f"found {found} as an image, expected a path or bytes")
    return ImageFile(data=read_image(store, path), name=str(name or path))


def _text(path: Any) -> Any:
    return path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path


def read_image(store: Store, path: str) -> bytes:
    """Read the image that a record refers to by a path relative to the record's folder.

    Raises:
        RowError: The image does not exist, is too large, is no regular file, or lies elsewhere.
        OSError: The storage failed; the image may exist.
    """
    if _WEB.match(path):
        # The URL is not quoted: it may hold a password or a signature.
        detail = "the image is a URL; fetch it first, by `consomme download`, which writes shards"
        raise RowError("image_missing", detail)
    if not is_safe_path(path):
        raise RowError("unsafe_path", f"{printable(path)!r} leads out of the file's folder")
    try:
        data = store.read_inside(path, 0, MAX_SAMPLE_BYTES + 1)
    except UnsafeFileError as error:
        raise RowError("unsafe_path", f"{printable(path)!r}: {error}") from error
    except UnicodeEncodeError as error:
        raise RowError("image_missing", f"{path}: the path is not UTF-8") from error
    except OSError as error:
        if error.errno not in _PATH_ERRORS and not isinstance(error, FileNotFoundError):
            raise
        raise RowError("image_missing", f"{path}: {error.strerror or 'no such file'}") from error
    if len(data) > MAX_SAMPLE_BYTES:
        detail = f"{path} has more than {MAX_SAMPLE_BYTES:,} bytes"
        raise RowError("image_too_large", detail)
    return data
