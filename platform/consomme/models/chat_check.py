"""Try a model's chat template and processor when it is opened, on conversations of our own.

What fails here fails for every sample, so it is an error of the model and not a reject of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.models.encoded import ImageRefusedError

_QUESTION = "describe the image."
_ANSWERS = ("a red circle", "blue")
"""An answer that the model's tokenizer cannot spell says nothing about the others."""

PROBE_SIZES = ((64, 48), (336, 336))
"""Width and height; families refuse pictures that are too small for them."""


def check_chat(chat: Any, *, has_answers: bool) -> None:
    """Encode a question, with and without a picture, and answers to it.

    Args:
        chat: An encoder of conversations.
        has_answers: Whether answers are encoded too, as scoring and training do.

    Raises:
        CheckpointError: The model's template or processor takes no such conversation.
    """
    user = Turn(role="user", content=_QUESTION)
    images = [Image.new("RGB", size, "gray") for size in PROBE_SIZES] if chat.has_vision else []
    if images:
        _first_that_works(
            [partial(chat.encode_prompt, [user], [image]) for image in images],
            "a question about a picture",
        )
    if has_answers or not images:
        _first_that_works([partial(chat.encode_prompt, [user])], "a question in text alone")
    if not has_answers:
        return
    turns = [[user, Turn(role="assistant", content=answer)] for answer in _ANSWERS]
    _first_that_works([partial(chat.encode, one) for one in turns], "an answer in text alone")
    if images:
        _first_that_works(
            [partial(chat.encode, one, [image]) for one in turns for image in images],
            "an answer about a picture",
        )


def _first_that_works(attempts: list[Callable[[], Any]], what: str) -> None:
    first_error: Exception | None = None
    for attempt in attempts:
        try:
            attempt()
        # A template is a program of the model's author, and a processor is one too.
        except Exception as error:  # noqa: BLE001
            cause = error.__cause__ if isinstance(error, ImageRefusedError) else None
            first_error = first_error or (cause if isinstance(cause, Exception) else error)
        else:
            return
    if isinstance(first_error, CheckpointError):
        raise first_error
    raise CheckpointError(
        f"the model's chat template or processor does not take {what}:"
        f" {type(first_error).__name__}: {first_error}. Every sample would fail; mend"
        " chat_template.jinja or the processor's files beside the model, set the template's options"
        " (template: {…} in the recipe), or take another model"
    ) from first_error
