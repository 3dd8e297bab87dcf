"""Tilings that keep a picture whole: squashed to a square, at its own aspect, or split in four.

The tile of `square` and `native` is the whole picture, so they have no thumbnail.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.hashing import is_in_share
from consomme.vision.tiling.plan import TILINGS, Size, TilePlan, Tiling, tiles_at


def _whole(size: Size) -> TilePlan:
    return TilePlan(grid=(1, 1), resized=size, strides=(0, 0), boxes=((0, 0, *size),))


@TILINGS.register("square")
@dataclass(frozen=True, kw_only=True)
class SquareTiling(Tiling):
    """Squash the whole picture to one square, as LLaVA-like models without tiles do."""

    def plan(self, width: int, height: int) -> TilePlan:
        """Return how a picture of this size is cut."""
        return _whole((self.tile_px, self.tile_px))


@TILINGS.register("native")
@dataclass(frozen=True, kw_only=True)
class NativeTiling(Tiling):
    """Keep the aspect ratio, with sides that are whole patches: for encoders of any resolution.

    A picture within the limits keeps its size but for the rest of a patch.

    Source: NaViT, arXiv 2307.06304, as Idefics2 uses it (arXiv 2405.02246): pictures of 378 to 980
    pixels.
    """

    tile_px: PositiveInt = 980
    """Most pixels of the longer side."""

    min_px: PositiveInt | None = None
    """A shorter side of fewer pixels is enlarged to so many, as far as the longer side allows; None
    enlarges nothing."""

    patch_px: PositiveInt = 14
    """Side of a patch."""

    merge: PositiveInt = 1
    """Side of the group of patches that becomes one token, such as 2 for pixel shuffle by 2; the
    picture's sides are whole groups."""

    @property
    def has_one_size(self) -> bool:
        """Whether all pictures that are encoded are squares of `tile_px`: they are not."""
        return False

    def plan(self, width: int, height: int) -> TilePlan:
        """Return how a picture of this size is cut."""
        return _whole(
            _in_patches(width, height, self.tile_px, self.min_px, self.patch_px * self.merge)
        )

    def tokens_of(self, size: Size, tokens_per_tile: int | None) -> int:
        """Return the tokens of one picture that is encoded: its patches or groups of them."""
        if tokens_per_tile is not None:
            return tokens_per_tile
        step = self.patch_px * self.merge
        return (size[0] // step) * (size[1] // step)


def _in_patches(width: int, height: int, max_px: int, min_px: int | None, step: int) -> Size:
    """Scale a size into limits, and round its sides to whole steps, at least one."""
    scale = 1.0
    if min_px is not None and min(width, height) < min_px:
        scale = min_px / min(width, height)
    scale = min(scale, max_px / max(width, height))
    most = max(1, max_px // step)

    def rounded(side: int) -> int:
        return step * min(most, max(1, round(side * scale / step)))

    return rounded(width), rounded(height)


def is_sample_split(sample_id: str, seed: int, fraction: float) -> bool:
    """Return whether a training sample's pictures are split, if so many samples' are.

    It depends on nothing else, so the samples may be read in any order by any worker.

    Args:
        sample_id: Of the sample.
        seed: Of the run.
        fraction: Share of the samples.
    """
    return is_in_share(f"split-{seed}-{sample_id}", fraction)


@TILINGS.register("split")
@dataclass(frozen=True, kw_only=True)
class SplitTiling(Tiling):
    """Encode the four quarters of a picture, and the whole picture after them, at one size each.

    Five times the tokens of one picture. Idefics2 gained 2.6 points on TextVQA by it, with half of
    the training samples split.

    Source: arXiv 2405.02246, section on image splitting. There, quarters are cut out and then
    resized; here the picture is resized to twice the size and then cut, so no seam is smeared.
    """

    probability: Fraction = 1.0
    """Share of the training samples whose pictures are split, by a hash of the sample's id and the
    seed. Elsewhere every picture is split, or none if it is 0."""

    thumbnail: bool = True
    """Whether the whole picture is encoded after its quarters."""

    keeps_aspect: bool = False
    """Whether each picture keeps its aspect ratio, as in `native`: `tile_px` is the longer side,
    and sides are whole patches. If not, each is squashed to a square."""

    patch_px: PositiveInt = 14
    """Side of a patch, with `keeps_aspect`."""

    @property
    def has_one_size(self) -> bool:
        """Whether all pictures that are encoded are squares of `tile_px`."""
        return not self.keeps_aspect

    def plan(self, width: int, height: int) -> TilePlan:
        """Return how a picture of this size is cut."""
        size = (self.tile_px, self.tile_px)
        if self.keeps_aspect:
            size = _in_patches(width, height, self.tile_px, self.tile_px, self.patch_px)
        if self.probability == 0:
            return _whole(size)
        return TilePlan(
            grid=(2, 2),
            resized=(2 * size[0], 2 * size[1]),
            strides=size,
            boxes=tiles_at((2, 2), size, size),
            thumbnail=size if self.thumbnail else None,
        )

    def tokens_of(self, size: Size, tokens_per_tile: int | None) -> int:
        """Return the tokens of one picture that is encoded: its patches, with `keeps_aspect`."""
        if tokens_per_tile is None and self.keeps_aspect:
            return (size[0] // self.patch_px) * (size[1] // self.patch_px)
        return super().tokens_of(size, tokens_per_tile)

    def split_or_not(self, *, is_split: bool) -> Self:
        """Return the tiling that splits every picture, or none."""
        return dataclasses.replace(self, probability=float(is_split))
