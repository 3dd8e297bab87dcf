"""Check what every later stage relies on, whatever format a sample is from."""

import io
import itertools
import unicodedata
import warnings
from functools import cache

from PIL import Image

from consomme.base.sample import ImageFile, Sample
from consomme.storage.readers.row import RowError
from consomme.storage.readers.text import MAX_NAME_BYTES, MAX_TEXT_BYTES, is_utf8
from consomme.storage.reading import Reading

_INVISIBLE = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))
"""Unicode categories of control, format and space characters."""


_SHAPED = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM")
"""Formats whose headers are read for a size."""


def check_sample(sample: Sample, reading: Reading = Reading()) -> None:  # noqa: B008
    """Check what every later stage relies on, and the limits of the recipe.

    Args:
        sample: A parsed sample.
        reading: Of the recipe.

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
    if reading.min_side_px is not None or reading.max_aspect is not None:
        for image in sample.images:
            _check_shape(image, reading)


def _check_shape(image: ImageFile, reading: Reading) -> None:
    """Check the sides of an image by its header; one that cannot be read is left to the decoder."""
    size = image_size(image.data)
    if size is None:
        return
    width, height = size
    short, long = min(size), max(size)
    if reading.min_side_px is not None and short < reading.min_side_px:
        detail = f"{width} × {height} pixels, expected at least {reading.min_side_px} on each side"
        raise RowError("image_too_small", detail)
    if reading.max_aspect is not None and long > reading.max_aspect * short:
        detail = f"{width} × {height} pixels, expected sides of at most {reading.max_aspect:g} to 1"
        raise RowError("image_too_elongated", detail)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height by an image's header; None if it has none that can be read."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return image.size
    except MemoryError:
        raise
    # Pillow's plugins raise many types on bad bytes; the decoder says what is wrong with them.
    except Exception:  # noqa: BLE001
        return None


@cache
def _formats() -> tuple[str, ...]:
    warnings.filterwarnings("ignore", module=r"PIL\b")
    Image.init()
    return tuple(name for name in _SHAPED if name in Image.OPEN)


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
