"""Count the tokens of a conversation from the sizes of its pictures: no pixel is prepared.

How many tokens a picture takes follows from its width and height in every family. Where a family's
own processor can tell (`_get_num_multimodal_tokens` of transformers), its word is tried against
what it really prepares, for pictures of several shapes and for two in one text, before anything is
counted by it. It need not be right as it stands, as some processors count their separators and
others do not: it has to differ from the truth by the same number for every shape. Where it does
not, and for pictures beyond the shapes that were tried, a grey picture of the size is prepared
instead of the real one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from consomme.base.errors import ConsommeError
from consomme.base.sample import Turn
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import PrefixChatEncoder

_LOG = logging.getLogger(__name__)

Size = tuple[int, int]
"""Width and height in pixels."""

TRIED: tuple[Size, ...] = (
    (32, 32), (96, 64), (48, 384), (333, 337), (400, 50), (640, 480), (500, 1100), (1600, 200),
    (1344, 1344), (200, 1600),
)  # fmt: skip
"""Pictures that a processor's word is tried with."""

MIN_SIDE, MAX_SIDE, MAX_ASPECT = 32, 4096, 8.0
"""Pictures that are counted by a processor's word; others are prepared."""

MAX_IMAGES = 8
"""Most pictures of a conversation that is counted; processors that number them write more digits
for more."""

TURNS = (Turn(role="user", content="a star"), Turn(role="assistant", content="a circle"))


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Lengths of a conversation."""

    num_tokens: int
    """Of the whole conversation, images included."""

    num_labelled: int
    """Of the answers."""


class TokenCounter:
    """Counts the tokens of conversations for one model."""

    def __init__(self, chat: ChatEncoder | PrefixChatEncoder) -> None:
        """Try what the model's processor tells of sizes; see `refused`.

        Args:
            chat: The model's encoder of conversations.
        """
        self._chat = chat
        self._offset = 0
        self._tell: Any = None
        self._takes_options = False
        self.refused = ""
        """Why the processor's word is not taken; empty where it is."""

        self.refused_several = ""
        """Why it is not taken for several images."""

        try:
            self._try()
        # A processor is a program of the model's author and may raise anything.
        except Exception as error:  # noqa: BLE001
            self.refused = f"{type(error).__name__}: {error}"
        if self.refused:
            _LOG.info("image tokens are counted by preparing grey pictures: %s", self.refused)

    def count(
        self,
        turns: Sequence[Turn],
        sizes: Sequence[Size],
        *,
        skip_rewritten: bool = False,
        image_options: Mapping[str, Any] | None = None,
    ) -> TokenCount:
        """Count the tokens of a conversation or a document.

        Args:
            turns: As in `ChatEncoder.encode`.
            sizes: Of its images, in their order.
            skip_rewritten: As in `ChatEncoder.encode`.
            image_options: As in `ChatEncoder.encode`.

        Raises:
            DataError: As in `ChatEncoder.encode`.
        """
        options = dict(image_options or {})
        added = self._added(sizes, options) if sizes else None
        if added is not None:
            assert isinstance(self._chat, ChatEncoder)
            row = self._chat.encode(
                turns, [_DOT] * len(sizes), skip_rewritten=skip_rewritten, expands_images=False
            )
            return TokenCount(num_tokens=len(row.input_ids) + added, num_labelled=row.num_tokens)
        # Prepared images of several are kept one by one, which takes more calls.
        key = ("grey", *sizes, *sorted(options.items()))
        keys = [key] if len(sizes) == 1 else None
        images = [grey(size) for size in sizes]
        if isinstance(self._chat, ChatEncoder):
            row = self._chat.encode(
                turns, images, keys, skip_rewritten=skip_rewritten, image_options=options
            )
        else:
            row = self._chat.encode(turns, images, keys, skip_rewritten=skip_rewritten)
        return TokenCount(num_tokens=len(row.input_ids), num_labelled=row.num_tokens)

    def _added(self, sizes: Sequence[Size], options: Mapping[str, Any]) -> int | None:
        """Return how many tokens images add to their marks; None if the processor does not tell."""
        if options and not self._takes_options:
            return None
        if self.refused or (len(sizes) > 1 and self.refused_several) or len(sizes) > MAX_IMAGES:
            return None
        if not all(_is_usual(size) for size in sizes):
            return None
        return self._told(sizes, options) + len(sizes) * self._offset

    def _told(self, sizes: Sequence[Size], options: Mapping[str, Any] | None = None) -> int:
        told = self._tell([(height, width) for width, height in sizes], **(options or {}))
        return sum(int(count) for count in told.num_image_tokens)

    def _try(self) -> None:
        owner = getattr(self._chat, "template_owner", None)
        self._tell = getattr(owner, "_get_num_multimodal_tokens", None)
        # Those of transformers keep the options of a call for all later ones.
        self._takes_options = hasattr(getattr(owner, "image_processor", None), "tiling_with")
        if self._tell is None or not isinstance(self._chat, ChatEncoder):
            self.refused = "the processor does not tell"
            return
        told = [self._told([size]) for size in TRIED]
        found = [self._prepared([size]) for size in TRIED]
        offsets = {real - said for real, said in zip(found, told, strict=True)}
        if len(offsets) != 1:
            self.refused = f"the processor tells {told} for {TRIED}, and prepares {found}"
            return
        (self._offset,) = offsets
        try:
            both = self._prepared([TRIED[1], TRIED[3]])
        except ConsommeError as error:
            self.refused_several = str(error)
            return
        if both != found[1] + found[3]:
            self.refused_several = f"two take {both}, alone {found[1]} and {found[3]}"

    def _prepared(self, sizes: Sequence[Size]) -> int:
        """Return how many tokens images add to their marks, by preparing grey ones."""
        assert isinstance(self._chat, ChatEncoder)
        images = [grey(size) for size in sizes]
        real = self._chat.encode(TURNS, images)
        marks = self._chat.encode(TURNS, images, expands_images=False)
        if real.num_tokens != marks.num_tokens:
            raise ConsommeError(f"{real.num_tokens} labelled tokens, of marks {marks.num_tokens}")
        return len(real.input_ids) - len(marks.input_ids)


def grey(size: Size) -> Image.Image:
    """Return a grey picture, which a processor prepares as any other of its size."""
    return Image.new("RGB", size, (128, 128, 128))


_DOT = grey((1, 1))


def _is_usual(size: Size) -> bool:
    return MIN_SIDE <= min(size) and max(size) <= MAX_SIDE and max(size) <= MAX_ASPECT * min(size)


@functools.lru_cache(maxsize=8)
def token_counter_for(chat: ChatEncoder | PrefixChatEncoder) -> TokenCounter:
    """Return the counter of an encoder, which is tried once."""
    return TokenCounter(chat)
