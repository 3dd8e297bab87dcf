"""A tokenizer and an image processor that remember their calls, to wrap those of a processor.

A processor tokenizes and prepares images inside one call. Recording what its tokenizer was given
tells where each character of the text went; caching images avoids preparing them again for every
caption, and for every conversation that shows them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from consomme.models.encoded import pad_and_join

NUM_CACHED_IMAGES = 16
"""Prepared images that are kept."""


class RecordingTokenizer:
    """A tokenizer that keeps the last text it was given, with its token ids and offsets."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.text = ""
        self.ids: list[int] = []
        self.offsets: list[tuple[int, int]] = []

    @property
    def state(self) -> tuple[str, list[int], list[tuple[int, int]]]:
        """The last text, its ids and offsets; can be set again after other calls."""
        return self.text, self.ids, self.offsets

    @state.setter
    def state(self, value: tuple[str, list[int], list[tuple[int, int]]]) -> None:
        self.text, self.ids, self.offsets = value

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
    """An image processor that caches the last images it prepared.

    Several images of one conversation are prepared one by one where that gives what the family
    prepares for all at once; which is tried on two images of different shape.
    """

    def __init__(self, inner: Any) -> None:
        """Wrap another image processor."""
        self._inner = inner
        self.keys: Sequence[object] = ()
        """Keys of the images that the next call prepares; None is never cached."""

        self.names: frozenset[str] = frozenset()
        """Names of what the last call returned: inputs of images, not of tokens."""

        self._cache: dict[object, Any] = {}
        self._joins: dict[str, str] | None = None
        self._is_tried = False

    def __call__(self, images: Any, **options: Any) -> Any:
        """Prepare images, or return the cached results of those whose keys are known."""
        flat = _flatten(images)
        keys = list(self.keys) if len(self.keys) == len(flat) else [None] * len(flat)
        if len(flat) == 1:
            output = self._one(images, keys[0], options)
        else:
            output = self._several(images, flat, keys, options)
        self.names = frozenset(output)
        return output

    @contextlib.contextmanager
    def set_to(self, options: Mapping[str, Any]) -> Iterator[None]:
        """Set attributes of the image processor for a while.

        Idefics2's processor writes its text by the attribute, whatever a call is given.
        """
        before = {name: getattr(self._inner, name) for name in options}
        try:
            for name, value in options.items():
                setattr(self._inner, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self._inner, name, value)

    def _one(self, images: Any, key: object, options: Mapping[str, Any]) -> Any:
        if key is not None and key in self._cache:
            return copy.copy(self._cache[key])
        output = self._inner(images, **options)
        if key is not None:
            while len(self._cache) >= NUM_CACHED_IMAGES:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = copy.copy(output)
        return output

    def _several(
        self,
        images: Any,
        flat: Sequence[Any],
        keys: Sequence[object],
        options: Mapping[str, Any],
    ) -> Any:
        if any(key is None for key in keys):
            return self._inner(images, **options)
        is_nested = isinstance(images[0], list | tuple)
        if not self._is_tried:
            self._joins, self._is_tried = self._find_joins(is_nested, options), True
        if self._joins is None:
            return self._inner(images, **options)
        alone = [
            self._one([[one]] if is_nested else [one], key, options)
            for one, key in zip(flat, keys, strict=True)
        ]
        joined = copy.copy(alone[0])
        for name, how in self._joins.items():
            joined[name] = _JOINS[how]([one[name] for one in alone])
        return joined

    def _find_joins(self, is_nested: bool, options: Mapping[str, Any]) -> dict[str, str] | None:
        """Return for each output how those of single images are joined; None if they cannot be."""
        first, second = (_noise(number, *size) for number, size in enumerate(_SIZES))
        try:
            alone = [
                self._inner([[one]] if is_nested else [one], **options) for one in (first, second)
            ]
            both = self._inner([[first, second]] if is_nested else [first, second], **options)
        # What a family's processor raises about our images it may not raise about others.
        except Exception:  # noqa: BLE001
            return None
        joins = {}
        for name, expected in both.items():
            if any(name not in one for one in alone):
                return None
            how = next(
                (how for how in _JOINS if _is_join(how, [one[name] for one in alone], expected)),
                None,
            )
            if how is None:
                return None
            joins[name] = how
        return joins

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the wrapped image processor."""
        return getattr(self._inner, name)


_SIZES = ((96, 64), (64, 160))


def _noise(number: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [one for image in images for one in _flatten(image)]
    return [images]


def _join_first(values: Sequence[Any]) -> Any:
    return pad_and_join(values)


def _join_second(values: Sequence[Any]) -> Any:
    return pad_and_join([value.transpose(0, 1) for value in values]).transpose(0, 1).contiguous()


def _join_lists(values: Sequence[Any]) -> Any:
    return [item for value in values for item in value]


def _join_inner_lists(values: Sequence[Any]) -> Any:
    return [[item for value in values for item in value[0]]]


_JOINS = {
    "first": _join_first,
    "second": _join_second,
    "lists": _join_lists,
    "inner lists": _join_inner_lists,
}


def _is_join(how: str, values: Sequence[Any], expected: Any) -> bool:
    try:
        return _is_equal(_JOINS[how](values), expected)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        return False


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and torch.equal(one, other)
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)
