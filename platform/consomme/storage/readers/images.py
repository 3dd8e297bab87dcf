"""Take the images of a record: paths, encoded bytes, base64, or structs of these, one or a list."""

import base64
import binascii
import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from consomme.base.sample import ImageFile, printable
from consomme.storage.readers.names import COMMON_IMAGE_KEYS, IMAGE_KEYS, find_key
from consomme.storage.readers.row import RowError
from consomme.storage.readers.text import MAX_SAMPLE_BYTES
from consomme.storage.readers.turns import Conversation
from consomme.storage.reading import Reading
from consomme.storage.stores.open import open_store
from consomme.storage.stores.regular import UnsafeFileError
from consomme.storage.stores.store import Store, is_safe_path

_VIDEO_KEYS = ("video", "videos", "video_path")
_VIDEO_MARK = "<video>"

_WEB = re.compile(r"https?://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")
_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_MAX_QUOTED = 200
"""Longest path that a message quotes; what is longer may be a picture."""

_PATH_ERRORS = {
    getattr(errno, name)
    for name in "ENOENT EISDIR ENOTDIR ENAMETOOLONG EINVAL ELOOP EACCES EPERM".split()
}
"""Errors that concern one path. Any other, such as a lost connection, concerns the storage and must
not be reported as a missing image."""


@dataclass(frozen=True, kw_only=True)
class ImagePlace:
    """Where the images lie that records name by paths."""

    store: Store
    """Reads images by paths relative to it."""

    root: str | None = None
    """Folder of the recipe, below which absolute paths may lie; None allows none."""

    @classmethod
    def of(cls, store: Store, reading: Reading) -> Self:
        """Return the folder that the recipe names, or that of the file.

        Args:
            store: The folder of the file.
            reading: Of the recipe.
        """
        if reading.image_root is None:
            return cls(store=store)
        return cls(store=open_store(reading.image_root), root=reading.image_root)

    def read(self, value: Any, sample_id: str, name: Any = None) -> ImageFile:
        """Read one image.

        Args:
            value: A path, bytes, base64, or a struct of them.
            sample_id: Names images without a name.
            name: Of the image, if the record has it.

        Raises:
            RowError: There is no such image.
        """
        path: Any = value
        if isinstance(value, Mapping):
            path = next((value[k] for k in _INSIDE if value.get(k)), None)
            if isinstance(path, Mapping):
                # OpenAI has {"image_url": {"url": …}}.
                path = next((path[k] for k in _INSIDE if path.get(k)), None)
            data = next((value[k] for k in ("bytes", "data") if value.get(k) is not None), None)
            if isinstance(data, str):
                data = _from_text(data) or _base64(data, "")
            if isinstance(data, bytes):
                return ImageFile(data=data, name=str(name or _text(path) or sample_id))
        if isinstance(value, bytes):
            return ImageFile(data=value, name=str(name or sample_id))
        path = _text(path)
        if not isinstance(path, str) or not path:
            found = "nothing" if value == "" else type(value).__name__
            detail = f"found {found} as an image, expected a path or bytes"
            raise RowError("record_malformed", detail)
        data = _from_text(path)
        if data is not None:
            return ImageFile(data=data, name=str(name or sample_id))
        return ImageFile(data=read_image(self.store, path, self.root), name=str(name or path))


_INSIDE = ("path", "url", "image", "image_url", "file_name")
"""Keys of a struct that may name the image."""


def take_images(
    record: dict[str, Any], place: ImagePlace, sample_id: str
) -> tuple[tuple[ImageFile, ...], bool]:
    """Pop the images of a record and read them; also return whether they are a list.

    Args:
        record: Of any format that names its images.
        place: Where they lie.
        sample_id: Names images without a name.

    Raises:
        RowError: An image is missing.
    """
    named, has_list = _take(record)
    name = record.pop("image_name", None)
    return tuple(place.read(value, sample_id, name) for value in named), has_list


def check_present(
    images: Sequence[ImageFile], record: Mapping[str, Any], conversation: Conversation
) -> None:
    """Refuse a caption of nothing, and videos; a conversation may be of text alone.

    Beside images, the name of a video that nothing in the text stands for is metadata: images may
    be its frames.

    Args:
        images: Of the sample.
        record: Without what became part of the sample.
        conversation: The text.

    Raises:
        RowError: There is no image, or a video.
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
    keys = [key for key in IMAGE_KEYS if key in record]
    common = find_key(record, (*IMAGE_KEYS, *COMMON_IMAGE_KEYS))
    if common is not None and common not in keys:
        keys.append(common)
    for key in keys:
        value = record.get(key)
        is_absent = isinstance(value, Mapping) and not any(value.values())
        if value is None or (isinstance(value, str | list) and not value) or is_absent:
            # Absent: a struct of nulls is how Parquet has no image, an empty text how CSV has none.
            if value is not None or key == "images":
                del record[key]
            continue
        del record[key]
        if not isinstance(value, list | tuple):
            return [value], key == "images"
        if any(one is None for one in value):
            raise RowError("image_missing", f"{key}: {value.index(None)} of {len(value)} is null")
        return list(value), True
    return [], False


def _text(path: Any) -> Any:
    return path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path


def _from_text(text: str) -> bytes | None:
    """Return the bytes of an image that stands in a text; None if the text is a path."""
    if text[:5].lower() == "data:":
        head = _DATA_URL.match(text)
        if head is None or ";base64" not in head[2].lower():
            detail = f"a data: URL of {len(text):,} characters, expected data:image/…;base64,…"
            raise RowError("image_undecodable", detail)
        return _base64(text[head.end() :], "data: URL of ")
    # A path of so many characters has a dot, or is none.
    if (len(text) >= _MIN_BASE64 or text.startswith(_STARTS)) and _BASE64.fullmatch(text):
        return _base64(text, "")
    return None


_MIN_BASE64 = 128
"""Fewest characters of a text that may be an image in base64."""

_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""How PNG, JPEG, GIF and WebP begin in base64, however small they are."""


def _base64(text: str, what: str) -> bytes:
    try:
        joined = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(joined + "=" * (-len(joined) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        # The text is not quoted: it is the picture.
        detail = f"a {what}{len(text):,} characters that are not base64: {error}"
        raise RowError("image_undecodable", detail) from error


def _shown(path: str) -> str:
    """Quote a path; what is too long for one may be a picture, and is not quoted."""
    if len(path) > _MAX_QUOTED:
        return f"a name of {len(path):,} characters"
    return repr(printable(path))


def read_image(store: Store, path: str, root: str | None = None) -> bytes:
    """Read the image that a record refers to by a path.

    Args:
        store: The folder that the path is relative to.
        path: Relative; or absolute, below `root`.
        root: Folder of the recipe, which is that of the store; None for the record's own folder.

    Raises:
        RowError: The image does not exist, is too large, is no regular file, or lies elsewhere.
        OSError: The storage failed; the image may exist.
    """
    if _WEB.match(path):
        # The URL is not quoted: it may hold a password or a signature.
        detail = "the image is a URL; fetch it first, by `consomme download`, which writes shards"
        raise RowError("image_missing", detail)
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if root is not None and path.startswith(f"{root.rstrip('/')}/"):
        path = path[len(root.rstrip("/")) + 1 :]
    if not is_safe_path(path) or "://" in path:
        raise RowError("unsafe_path", _why_unsafe(path, root))
    try:
        data = store.read_inside(path, 0, MAX_SAMPLE_BYTES + 1)
    except UnsafeFileError as error:
        raise RowError("unsafe_path", f"{_shown(path)}: {error}") from error
    except UnicodeEncodeError as error:
        raise RowError("image_missing", f"{_shown(path)}: the path is not UTF-8") from error
    except OSError as error:
        if error.errno not in _PATH_ERRORS and not isinstance(error, FileNotFoundError):
            raise
        shown = path if len(path) <= _MAX_QUOTED else _shown(path)
        raise RowError("image_missing", f"{shown}: {error.strerror or 'no such file'}") from error
    if len(data) > MAX_SAMPLE_BYTES:
        detail = f"{path} has more than {MAX_SAMPLE_BYTES:,} bytes"
        raise RowError("image_too_large", detail)
    return data


def _why_unsafe(path: str, root: str | None) -> str:
    """Say why a path is not followed, and what to do."""
    shown = _shown(path)
    if root is not None:
        return f"{shown} does not lie below reading.image_root ({root})"
    if path.startswith("/") or "://" in path:
        return (
            f"{shown} is absolute, and leads out of the file's folder: the image is not embedded;"
            " if it is there, name a folder above it in the recipe, as in reading.image_root:"
            f" {printable(path.rpartition('/')[0][:_MAX_QUOTED]) or '/'}"
        )
    return (
        f"{shown} leads out of the file's folder; name the folder that holds the images in the"
        " recipe, as reading.image_root"
    )
