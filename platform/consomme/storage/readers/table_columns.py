"""Check that the columns of a table make samples, and say which would, if they do not."""

from collections.abc import Callable, Sequence

from consomme.base.errors import DataError
from consomme.storage.readers.names import (
    CAPTION_KEYS,
    COMMON_CAPTION_KEYS,
    COMMON_IMAGE_KEYS,
    COMMON_TURN_KEYS,
    IMAGE_KEYS,
    QUESTION_KEYS,
    TURN_KEYS,
    mapping_hint,
    missing_columns,
)
from consomme.storage.reading import Reading

CheckNames = Callable[[Sequence[str], str, Reading], None]
"""Checks the names of a table's columns: gets them, the URL of the shard, and the options."""


def check_columns(names: Sequence[str], shard: str, reading: Reading) -> None:
    """Check the names of a table's columns.

    Args:
        names: Of all columns.
        shard: URL of the shard.
        reading: Names columns.

    Raises:
        DataError: A column that the recipe names is missing, or there is none for a text, or none
            for an image and no conversation.
    """
    listed = ", ".join(names)
    missing = missing_columns(names, reading)
    if missing:
        raise DataError(
            f"{shard}: reading.columns names {', '.join(missing)}; found the columns {listed}"
        )
    lowered = {name.lower() for name in names}
    parts = set(reading.columns)
    is_question = any({asked, answer} <= lowered for asked, answer in QUESTION_KEYS)
    is_question |= {"question", "answer"} <= parts
    is_dialogue = is_question or "conversation" in parts
    is_dialogue |= bool(lowered & {*TURN_KEYS, *COMMON_TURN_KEYS})
    is_dialogue |= {"text_list", "image_info"} <= lowered
    has_text = is_dialogue or "caption" in parts
    has_text |= bool(lowered & {*CAPTION_KEYS, *COMMON_CAPTION_KEYS})
    has_image = "image" in parts or bool(lowered & {*IMAGE_KEYS, *COMMON_IMAGE_KEYS})
    if not (has_text and (has_image or is_dialogue)):
        if lowered & {"url", "image_url", "url_link"} and not has_image:
            raise DataError(
                f"{shard}: found the columns {listed}: the images are URLs; fetch them first, by"
                " `consomme download`, which writes shards"
            )
        captions, turns = " or ".join(CAPTION_KEYS), ", ".join(TURN_KEYS)
        raise DataError(
            f"{shard}: found the columns {listed}; expected image or images, and {captions}; or a"
            f" conversation in one of {turns}; {mapping_hint(names)}"
        )
