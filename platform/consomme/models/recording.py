"""A tokenizer and an image processor that remember their last call, to wrap those of a processor.

A processor tokenizes and prepares images inside one call. Recording what its tokenizer was given
tells where each character of the text went; caching the last image avoids preparing it again for
every caption of the same image.
"""

from __future__ import annotations

import copy
from typing import Any


class RecordingTokenizer:
    """A tokenizer that keeps the last text it was given, with its token ids and offsets."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.text = ""
        self.ids: list[int] = []
        self.offsets: list[tuple[int, int]] = []

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenize one text, and keep it with its ids and offsets."""
        is_list = not isinstance(text, str)
        (self.text,) = text if is_list else [text]
        # Converted to tensors after the offsets are gone, which are most of the numbers.
        tensors = options.pop("return_tensors", None)
        output = self._inner(text, **(options | {"return_offsets_mapping": True}))
        offsets, ids = output.pop("offset_mapping"), output["input_ids"]
        self.ids = list(ids[0] if is_list else ids)
        self.offsets = list(offsets[0] if is_list else offsets)
        return output.convert_to_tensors(tensors, prepend_batch_axis=not is_list)

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the wrapped tokenizer."""
        return getattr(self._inner, name)


class CachedImageProcessor:
    """An image processor that caches the last image it prepared."""

    def __init__(self, inner: Any) -> None:
        """Wrap another image processor."""
        self._inner = inner
        self.key: object = None
        """Key of the image that the next call prepares; None is never cached."""

        self.names: frozenset[str] = frozenset()
        """Names of what the last call returned: inputs of images, not of tokens."""

        self._last: tuple[object, Any] | None = None

    def __call__(self, images: Any, **options: Any) -> Any:
        """Prepare an image, or return the cached result if `key` is that of the last call."""
        if self.key is not None and self._last is not None and self._last[0] == self.key:
            return copy.copy(self._last[1])
        output = self._inner(images, **options)
        self.names = frozenset(output)
        self._last = (self.key, copy.copy(output))
        return output

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the wrapped image processor."""
        return getattr(self._inner, name)
