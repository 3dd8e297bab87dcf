"""Grids of square tiles: CATTY, which keeps the aspect ratio, and dynamic high resolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.vision.tiling.plan import (
    TILINGS,
    Size,
    TilePlan,
    Tiling,
    TilingRefusedError,
    tiles_at,
)

Grid = tuple[int, int]
"""Columns and rows."""

Thumbnail = Literal["always", "several", "never"]


@dataclass(frozen=True, kw_only=True)
class GridTiling(Tiling):
    """Base of tilings with as many tiles as the size of a picture asks for."""

    thumbnail: Thumbnail = "always"
    """When the whole picture, squashed to a square, is encoded after the tiles; `several`: if there
    is more than one tile."""

    def _thumbnail(self, num_tiles: int) -> Size | None:
        is_shown = self.thumbnail == "always" or (self.thumbnail == "several" and num_tiles > 1)
        return (self.tile_px, self.tile_px) if is_shown else None


@TILINGS.register("catty")
@dataclass(frozen=True, kw_only=True)
class CattyTiling(GridTiling):
    """Cut without distortion: tiles overlap along the longer side instead (POINTS).

    The grid is at least as elongated as the picture, which is scaled until its shorter side fills
    the grid's. So a picture that is nearly square has six tiles where a square one has as few as
    its size asks for, and a small picture is enlarged.

    Strides are whole pixels, rounded down as in the authors' code: at the right or lower end, up to
    two pixels less than there are tiles along that side are only in the thumbnail.

    Source: arXiv 2409.04828, section on CATTY, and the authors' code. The paper's equation 1 prints
    the scale upside down; this is the code's.
    """

    max_tiles: PositiveInt = 8
    """Most tiles, without the thumbnail."""

    extreme: Literal["resize", "refuse"] = "resize"
    """What becomes of a picture that is more elongated than `max_tiles` to 1: it is squeezed to
    that shape, as the paper says; or it is refused, as the authors' code does unless told
    otherwise."""

    @property
    def _thumbnail_of_resized(self) -> bool:
        return True

    def plan(self, width: int, height: int) -> TilePlan:
        """Return how a picture of this size is cut."""
        squeezed = self._squeezed(width, height)
        width, height = squeezed or (width, height)
        grid = self._grid(width, height)
        resized = self._resized(width, height, grid)
        strides = (
            _stride(resized[0], grid[0], self.tile_px),
            _stride(resized[1], grid[1], self.tile_px),
        )
        boxes = tiles_at(grid, strides, (self.tile_px, self.tile_px))
        return TilePlan(
            grid=grid,
            resized=resized,
            strides=strides,
            boxes=boxes,
            thumbnail=self._thumbnail(len(boxes)),
            squeezed=squeezed,
        )

    def _squeezed(self, width: int, height: int) -> Size | None:
        limit = self.max_tiles
        if 1 / limit <= width / height <= limit:
            return None
        if self.extreme == "refuse":
            raise TilingRefusedError(
                f"found a picture of {width} x {height}, expected at most {limit} to 1; reject it,"
                " or set extreme=resize, which squeezes it to that shape"
            )
        return (limit * height, height) if width > height else (width, limit * width)

    def _grid(self, width: int, height: int) -> Grid:
        aspect = width / height
        keys = {
            key: grids
            for key, grids in _by_aspect(1, self.max_tiles).items()
            if aspect == 1 or (key <= aspect if aspect < 1 else key >= aspect)
        }
        nearest = min(keys, key=lambda key: abs(key - aspect))
        area = (width / self.tile_px) * (height / self.tile_px)
        return min(keys[nearest], key=lambda grid: abs(grid[0] * grid[1] - area))

    def _resized(self, width: int, height: int, grid: Grid) -> Size:
        # In the order of the authors' operations, whose result is cut off to an integer.
        if width < height:
            new_width = grid[0] * self.tile_px
            return new_width, int(height / width * new_width)
        new_height = grid[1] * self.tile_px
        return int(width / height * new_height), new_height


def _stride(side: int, count: int, tile_px: int) -> int:
    return (side - tile_px) // (count - 1) if count > 1 else 0


@TILINGS.register("dynamic")
@dataclass(frozen=True, kw_only=True)
class DynamicTiling(GridTiling):
    """Stretch to the grid whose aspect ratio is nearest: dynamic high resolution (InternVL-1.5).

    Tiles do not overlap, and the picture is distorted unless its shape is the grid's.

    Source: arXiv 2404.16821; `tie` has the two readings in use. With `largest` the tiles are those
    of transformers' InternVL and GOT-OCR2 processors.
    """

    resample: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    """Filter of every resize."""

    thumbnail: Thumbnail = "several"
    """When the whole picture, squashed to a square, is encoded after the tiles; `several`: if there
    is more than one tile."""

    min_tiles: PositiveInt = 1
    """Fewest tiles, without the thumbnail."""

    max_tiles: PositiveInt = 12
    """Most tiles, without the thumbnail."""

    tie: Literal["largest", "nearest"] = "largest"
    """Which of the grids of one shape is taken: the largest that the picture fills by half; or, as
    in the baseline of POINTS, the one whose area is nearest to the picture's."""

    @rule
    def _range(self) -> Iterator[str]:
        if self.min_tiles > self.max_tiles:
            yield f"min_tiles: found {self.min_tiles}, expected at most max_tiles={self.max_tiles}"

    def plan(self, width: int, height: int) -> TilePlan:
        """Return how a picture of this size is cut."""
        grid = self._grid(width, height)
        strides = (
            self.tile_px if grid[0] > 1 else 0,
            self.tile_px if grid[1] > 1 else 0,
        )
        boxes = tiles_at(grid, strides, (self.tile_px, self.tile_px))
        return TilePlan(
            grid=grid,
            resized=(grid[0] * self.tile_px, grid[1] * self.tile_px),
            strides=strides,
            boxes=boxes,
            thumbnail=self._thumbnail(len(boxes)),
        )

    def _grid(self, width: int, height: int) -> Grid:
        by_aspect = _by_aspect(self.min_tiles, self.max_tiles)
        aspect, area = width / height, width * height
        nearest = min(by_aspect, key=lambda key: abs(key - aspect))
        tile_area = self.tile_px**2
        if self.tie == "nearest":
            return min(
                by_aspect[nearest], key=lambda grid: abs(grid[0] * grid[1] * tile_area - area)
            )
        distance = abs(nearest - aspect)
        tied = sorted(
            (g for key, some in by_aspect.items() if abs(key - aspect) == distance for g in some),
            key=lambda grid: (grid[0] * grid[1], grid),
        )
        best = tied[0]
        for grid in tied[1:]:
            if area > 0.5 * tile_area * grid[0] * grid[1]:
                best = grid
        return best


@lru_cache(maxsize=64)
def _by_aspect(min_tiles: int, max_tiles: int) -> dict[float, tuple[Grid, ...]]:
    """Return the grids of each aspect ratio, of few tiles first, as ties are decided in order."""
    found: dict[float, list[Grid]] = {}
    for count in range(min_tiles, max_tiles + 1):
        for columns in range(1, count + 1):
            if count % columns == 0:
                grid = (columns, count // columns)
                found.setdefault(grid[0] / grid[1], []).append(grid)
    return {aspect: tuple(grids) for aspect, grids in found.items()}
