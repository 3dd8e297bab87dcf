"""What a tiling is: a plan for each size of picture, and the pictures that are cut by it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

from PIL import Image

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked
from consomme.base.registry import Registry

Size = tuple[int, int]
"""Width and height in pixels."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""

Resample = Literal["bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class TilingRefusedError(ValueError):
    """A tiling does not take pictures of this shape."""


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """How pictures of one size are cut."""

    grid: tuple[int, int]
    """Columns and rows of tiles."""

    resized: Size
    """Size that the picture is resized to before it is cut."""

    strides: tuple[int, int]
    """Distance of neighbouring tiles in x and y; 0 where there is one tile."""

    boxes: tuple[Box, ...]
    """Tiles in the resized picture, row by row."""

    thumbnail: Size | None = None
    """Size of the whole picture that is encoded after the tiles; None for no thumbnail."""

    squeezed: Size | None = None
    """Size that the picture is resized to first of all, as its shape is too extreme; None if not.
    """

    @property
    def num_tiles(self) -> int:
        """Tiles, without the thumbnail."""
        return len(self.boxes)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Size of each picture that is encoded: the tiles, and then the thumbnail."""
        tiles = tuple((right - left, low - top) for left, top, right, low in self.boxes)
        return tiles if self.thumbnail is None else (*tiles, self.thumbnail)

    @property
    def num_encoded(self) -> int:
        """Pictures that the vision encoder is given: tiles and thumbnail."""
        return self.num_tiles + (self.thumbnail is not None)


@dataclass(frozen=True, kw_only=True)
class Tiling(Checked, ABC):
    """Base of tilings."""

    tile_px: PositiveInt = 336
    """Side of the square that the vision encoder takes."""

    resample: Resample = "bilinear"
    """Filter of every resize."""

    @abstractmethod
    def plan(self, width: int, height: int) -> TilePlan:
        """Return how a picture of this size is cut; no pixel is needed.

        Raises:
            TilingRefusedError: The tiling does not take pictures of this shape.
        """

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """Return the pictures to encode: tiles row by row, and then the thumbnail.

        Raises:
            TilingRefusedError: The tiling does not take pictures of this shape.
        """
        plan = self.plan(*image.size)
        filter_ = _FILTERS[self.resample]
        if plan.squeezed is not None:
            image = image.resize(plan.squeezed, filter_)
        resized = image.resize(plan.resized, filter_)
        tiles = [resized.crop(box) for box in plan.boxes]
        if plan.thumbnail is not None:
            whole = resized if self._thumbnail_of_resized else image
            tiles.append(whole.resize(plan.thumbnail, filter_))
        return tiles

    @property
    def _thumbnail_of_resized(self) -> bool:
        """Whether the thumbnail is made of the resized picture, and not of the original."""
        return False

    def num_tokens(self, width: int, height: int, tokens_per_tile: int | None) -> int:
        """Return the image tokens of a picture of this size, without separators.

        Args:
            width: Of the picture.
            height: Of the picture.
            tokens_per_tile: Tokens of each picture that is encoded; None for one per patch or
                group of patches, which `native` counts.

        Raises:
            TilingRefusedError: The tiling does not take pictures of this shape.
            ValueError: `tokens_per_tile` is None and the tiling has no patches.
        """
        return sum(self.tokens_of(size, tokens_per_tile) for size in self.plan(width, height).sizes)

    def tokens_of(self, size: Size, tokens_per_tile: int | None) -> int:
        """Return the tokens of one picture that is encoded; see `num_tokens`."""
        if tokens_per_tile is None:
            raise ValueError(
                f"{type(self).__name__} counts no patches; give the tokens of a tile of"
                f" {size[0]} x {size[1]} pixels"
            )
        return tokens_per_tile

    @property
    def has_one_size(self) -> bool:
        """Whether all pictures that are encoded are squares of `tile_px`."""
        return True

    def split_or_not(self, *, is_split: bool) -> Self:
        """Return the tiling that cuts every picture, or none; only `split` differs."""
        return self


def tiles_at(grid: tuple[int, int], strides: tuple[int, int], tile: Size) -> tuple[Box, ...]:
    """Return the boxes of a grid, row by row."""
    (columns, rows), (stride_x, stride_y), (width, height) = grid, strides, tile
    corners = [(x * stride_x, y * stride_y) for y in range(rows) for x in range(columns)]
    return tuple((left, top, left + width, top + height) for left, top in corners)


def with_name(tiling: Tiling) -> dict[str, object]:
    """Return a tiling as the node of a recipe: `{name: …, field: …}`, every field written out."""
    fields = {one.name: getattr(tiling, one.name) for one in dataclasses.fields(tiling)}
    name = next(name for name in TILINGS.names() if TILINGS.get(name) is type(tiling))
    return {"name": name, **fields}


TILINGS: Registry[Tiling] = Registry(
    "tiling", "consomme/vision/tiling/registry.py", needed=("plan", "cut", "num_tokens")
)
