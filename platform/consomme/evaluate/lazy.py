"""Requests and images that are made when they are asked for, so that few images are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from PIL import Image

from consomme.evaluate.benchmark import BenchmarkItem, shown
from consomme.evaluate.question_files import decoded


class LazyItems(Sequence[BenchmarkItem]):
    """Requests that are made when they are asked for, so that few images are in memory."""

    def __init__(self, number: int, make: Callable[[int], BenchmarkItem]) -> None:
        """Store how each of so many requests is made."""
        self._number, self._make = number, make

    def __len__(self) -> int:
        """Return the number of requests."""
        return self._number

    @overload
    def __getitem__(self, at: int) -> BenchmarkItem: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[BenchmarkItem]: ...
    def __getitem__(self, at: int | slice) -> BenchmarkItem | Sequence[BenchmarkItem]:
        """Make a request, or several."""
        if isinstance(at, slice):
            return [self._make(number) for number in range(self._number)[at]]
        return self._make(range(self._number)[at])


class LazyImages(Sequence[Image.Image]):
    """Images that are decoded when they are asked for, or grey ones of their sizes."""

    def __init__(self, encoded: Sequence[bytes], *, blank: bool) -> None:
        """Store the encoded images."""
        self._encoded, self._blank = encoded, blank

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._encoded)

    @overload
    def __getitem__(self, at: int) -> Image.Image: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, at: int | slice) -> Image.Image | Sequence[Image.Image]:
        """Decode an image, or several."""
        if isinstance(at, slice):
            return LazyImages(self._encoded[at], blank=self._blank)
        (image,) = decoded([self._encoded[at]])
        return shown(image, self._blank)
