"""Windows of requests to a scorer: what is prepared, and encoded, together.

Bounds of windows depend on the requests alone. The first windows are small, because the model has
to wait for the very first; conversations about the same images stay in one window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consomme.engines.scoring.requests import (
    EncodedConversation,
    EncodedRequest,
    NotScored,
    Score,
    ScoringLimits,
    ScoringRequest,
    encode_request,
)
from consomme.models.encoded import Pixels
from consomme.models.layout import is_simple

WINDOW_ROWS = 128
FIRST_WINDOW_ROWS = 32
WINDOW_VALUES = 1 << 27
"""Numbers in the prepared images of a window: half a gigabyte."""

KEPT_VALUES = 1 << 26
"""Numbers in the features that are kept for later windows."""


@dataclass
class Window:
    """Requests that are processed together."""

    requests: list[tuple[int, EncodedRequest]] = field(default_factory=list)
    """Index of each request, and its tokens."""

    conversations: list[EncodedConversation] = field(default_factory=list)
    images: dict[object, Pixels] = field(default_factory=dict)
    """Of conversations with one image, before their text."""

    shared: dict[object, Pixels] = field(default_factory=dict)
    """Of other conversations."""


@dataclass(frozen=True)
class WindowReader:
    """Encodes requests for one model."""

    chat: Any
    """Its chat encoder."""

    limits: ScoringLimits
    dtype: torch.dtype
    """Of the model."""

    refused_several: str
    """Why it takes no several images; empty if it does."""

    def windows(
        self, requests: Sequence[ScoringRequest], results: dict[int, Score | NotScored]
    ) -> Iterator[Window]:
        """Encode requests and yield them window by window; put a `NotScored` into `results`."""
        window, num_values, max_rows = Window(), 0, FIRST_WINDOW_ROWS
        for index, request in enumerate(requests):
            if self.refused_several and has_several(request):
                results[index] = NotScored(
                    reason="conversation_unsupported", detail=self.refused_several
                )
                continue
            encoded = encode_request(self.chat, request, index, self.limits)
            if isinstance(encoded, NotScored):
                results[index] = encoded
                continue
            is_full = len(window.requests) >= max_rows or num_values >= WINDOW_VALUES
            # Conversations about the same images stay in one window.
            keys = encoded.conversations[0].image_keys
            known = (window.images, window.shared)
            if is_full and not (keys and all(any(key in one for one in known) for key in keys)):
                yield window
                window, num_values, max_rows = Window(), 0, min(2 * max_rows, WINDOW_ROWS)
            window.requests.append((index, encoded))
            window.conversations += encoded.conversations
            images = window.shared if has_several(request) else window.images
            for conversation in encoded.conversations:
                for one in (conversation, conversation.masked):
                    pairs = zip(one.image_keys, one.chat.images, strict=False) if one else ()
                    for key, pixels in pairs:
                        if key not in images:
                            images[key] = pixels.to(self.dtype)
                            num_values += pixels.num_values
        if window.conversations:
            yield window


def prefetch(windows: Iterator[Window]) -> Iterator[Window]:
    """Prepare the next window in a thread while the model works on this one."""
    with ThreadPoolExecutor(1, "windows") as pool:
        upcoming = pool.submit(next, windows, None)
        while (window := upcoming.result()) is not None:
            upcoming = pool.submit(next, windows, None)
            yield window


def has_several(request: ScoringRequest) -> bool:
    """Whether a request has several images, or one that is not at the beginning."""
    return len(request.images) > 1 or not is_simple(request.turns)


def keep_last(kept: dict[object, list[Tensor]], used: dict[object, list[Tensor]]) -> None:
    """Keep features that were used last, up to `KEPT_VALUES` numbers."""
    for key, features in used.items():
        kept.pop(key, None)
        kept[key] = features
    sizes = {key: sum(one.numel() for one in features) for key, features in kept.items()}
    total = sum(sizes.values())
    for key in list(kept):
        if total <= KEPT_VALUES:
            break
        total -= sizes[key]
        del kept[key]
