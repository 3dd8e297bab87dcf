"""What training does to images before the model's own processor: sizes, and whether to split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from PIL import Image

Size = tuple[int, int]
"""Width and height of an image in pixels."""


class Varied(Protocol):
    """What a sample says about its images; see `samples.PreparedSample`."""

    @property
    def scale(self) -> float:
        """Factor by which they are enlarged."""

    @property
    def min_pixels(self) -> int | None:
        """Smaller ones are enlarged to this many pixels."""

    @property
    def max_pixels(self) -> int | None:
        """Larger ones are reduced to this many pixels."""

    @property
    def is_split(self) -> bool | None:
        """Whether they are split; None for as the processor does."""


def image_options(chat: Any, prepared: Varied) -> Mapping[str, Any]:
    """Return what the image processor is told about a sample."""
    from consomme.models.tiling.splitting import split_option

    if prepared.is_split is None:
        return {}
    option = split_option(chat.template_owner)
    return {} if option is None else option.value(is_split=prepared.is_split)


def resized_to(size: Size, prepared: Varied) -> Size:
    """Return the size that an image of a sample is resized to."""
    return resized_size(
        size,
        scale=prepared.scale,
        min_pixels=prepared.min_pixels,
        max_pixels=prepared.max_pixels,
    )


def resized(image: Image.Image, prepared: Varied) -> Image.Image:
    """Return an image as the model's own processor is given it."""
    size = resized_to(image.size, prepared)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def resized_size(
    size: tuple[int, int], *, scale: float, min_pixels: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """Return the width and height of an image that is enlarged, and then kept within limits.

    The shape stays the same up to rounding; a limit is never crossed by rounding, unless a side
    would have no pixel.
    """
    width, height = size
    if scale != 1.0:
        width, height = round(width * scale), round(height * scale)
    if max_pixels is not None and width * height > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        width, height = max(1, math.floor(width * factor)), max(1, math.floor(height * factor))
    elif min_pixels is not None and width * height < min_pixels:
        factor = math.sqrt(min_pixels / (width * height))
        width, height = math.ceil(width * factor), math.ceil(height * factor)
    return width, height
