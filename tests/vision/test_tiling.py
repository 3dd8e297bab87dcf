"""Tilings: the reference vectors, and what holds for pictures of any size."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from PIL import Image

from consomme.base.errors import RecipeError
from consomme.models.imports import import_transformers
from consomme.vision.tiling.grids import CattyTiling, DynamicTiling
from consomme.vision.tiling.plan import TilePlan, Tiling, TilingRefusedError, with_name
from consomme.vision.tiling.registry import TILINGS
from consomme.vision.tiling.whole import NativeTiling, SplitTiling, SquareTiling, is_sample_split

# Of the authors' code with S = 336 and M = 8: size, grid, resized, strides, tiles.
CATTY_VECTORS = [
    ((336, 336), (1, 1), (336, 336), (0, 0), 1),
    ((672, 336), (2, 1), (672, 336), (336, 0), 2),
    ((1000, 500), (2, 1), (672, 336), (336, 0), 2),
    ((640, 480), (3, 2), (896, 672), (280, 336), 6),
    ((4032, 3024), (3, 2), (896, 672), (280, 336), 6),
    ((480, 640), (2, 3), (672, 896), (336, 280), 6),
    ((1920, 1080), (4, 2), (1194, 672), (286, 336), 8),
    ((1280, 720), (4, 2), (1194, 672), (286, 336), 8),
    ((1080, 1920), (2, 4), (672, 1194), (336, 286), 8),
    ((100, 700), (1, 7), (336, 2352), (0, 336), 7),
    ((3000, 400), (8, 1), (2520, 336), (312, 0), 8),
    ((337, 336), (3, 2), (674, 672), (169, 336), 6),
    ((50, 40), (3, 2), (840, 672), (252, 336), 6),
]


def sizes(count: int, seed: int = 0, most: int = 3000) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    some = [(draw.randint(20, most), draw.randint(20, most)) for _ in range(count)]
    thin = [(draw.randint(1, 40), draw.randint(1, most)) for _ in range(count // 10)]
    return some + thin + [(height, width) for width, height in thin]


def picture(width: int, height: int) -> Image.Image:
    rows = np.linspace(0, 255, height)[:, None, None]
    columns = np.linspace(0, 255, width)[None, :, None]
    return Image.fromarray(
        np.broadcast_to((rows + columns) / 2, (height, width, 3)).astype(np.uint8).copy()
    )


@pytest.mark.parametrize(("size", "grid", "resized", "strides", "num_tiles"), CATTY_VECTORS)
def test_catty_equals_the_vectors_of_the_authors_code(
    size: tuple[int, int],
    grid: tuple[int, int],
    resized: tuple[int, int],
    strides: tuple[int, int],
    num_tiles: int,
) -> None:
    plan = CattyTiling().plan(*size)
    assert (plan.grid, plan.resized, plan.strides) == (grid, resized, strides)
    assert plan.num_tiles == num_tiles
    assert plan.num_encoded == num_tiles + 1
    assert CattyTiling().num_tokens(*size, 144) == 144 * (num_tiles + 1)


def covered(plan: TilePlan, axis: int) -> tuple[int, int]:
    """Largest gap between neighbouring tiles, and pixels after the last one."""
    spans = sorted({(box[axis], box[axis + 2]) for box in plan.boxes})
    gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(spans)]
    return max([0, *gaps]), plan.resized[axis] - spans[-1][1]


@pytest.mark.parametrize("tile_px", [336, 32])
def test_catty_has_no_gap_and_keeps_the_aspect_of_any_size(tile_px: int) -> None:
    for max_tiles in (8, 12):
        tiling = CattyTiling(tile_px=tile_px, max_tiles=max_tiles)
        for width, height in sizes(1000, seed=max_tiles):
            plan = tiling.plan(width, height)
            columns, rows = plan.grid
            assert plan.num_tiles == columns * rows <= max_tiles
            assert {*plan.sizes} == {(tile_px, tile_px)}
            begin = plan.squeezed or (width, height)
            # One scale for both sides: what is cut off to an integer is less than a pixel.
            short = 0 if begin[0] < begin[1] else 1
            scale = plan.resized[short] / begin[short]
            assert plan.resized[short] == plan.grid[short] * tile_px
            assert -1e-6 < scale * begin[1 - short] - plan.resized[1 - short] < 1 + 1e-6
            for axis in (0, 1):
                gap, rest = covered(plan, axis)
                assert gap == 0
                assert 0 <= rest <= max(0, plan.grid[axis] - 2)
                # Tiles overlap along the longer side only.
                assert plan.strides[axis] in (0, tile_px) or axis != short
                assert plan.strides[axis] <= tile_px


def test_a_picture_beyond_the_most_elongated_grid_is_squeezed_to_it_or_refused() -> None:
    plan = CattyTiling().plan(5000, 100)
    assert plan.squeezed == (800, 100)
    assert (plan.grid, plan.resized) == ((8, 1), (2688, 336))
    assert CattyTiling().plan(100, 5000).resized == (336, 2688)
    assert CattyTiling().plan(800, 100).squeezed is None
    with pytest.raises(TilingRefusedError, match=r"5000 x 100, expected at most 8 to 1.*extreme"):
        CattyTiling(extreme="refuse").plan(5000, 100)
    CattyTiling(extreme="refuse").plan(800, 100)


@pytest.mark.parametrize("tile_px", [336, 448])
@pytest.mark.parametrize("max_tiles", [6, 12])
def test_dynamic_tiles_are_those_of_transformers(tile_px: int, max_tiles: int) -> None:
    import_transformers()
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    tiling = DynamicTiling(tile_px=tile_px, max_tiles=max_tiles)
    for width, height in sizes(400, seed=tile_px):
        expected = get_optimal_tiled_canvas((height, width), (tile_px, tile_px), 1, max_tiles)
        plan = tiling.plan(width, height)
        assert plan.grid == expected
        assert plan.num_encoded == plan.num_tiles + (plan.num_tiles > 1)
        assert all(covered(plan, axis) == (0, 0) for axis in (0, 1))


def test_the_two_readings_of_dynamic_differ_where_grids_have_one_shape() -> None:
    points = DynamicTiling(tie="nearest", max_tiles=8, thumbnail="always", resample="bilinear")
    # Two of the same shape: the nearest in area has one tile, the largest half filled has four.
    assert points.plan(500, 500).grid == (1, 1)
    assert DynamicTiling(max_tiles=8).plan(500, 500).grid == (2, 2)
    assert points.plan(640, 480).grid == (3, 2)


@pytest.mark.parametrize("merge", [1, 2])
def test_native_keeps_the_aspect_to_half_a_patch(merge: int) -> None:
    tiling = NativeTiling(tile_px=980, min_px=378, patch_px=14, merge=merge)
    step = 14 * merge
    for width, height in sizes(1000):
        (size,) = tiling.plan(width, height).sizes
        assert max(size) <= 980
        assert size[0] % step == size[1] % step == 0
        scale = max(size) / max(width, height)
        for found, side in zip(size, (width, height), strict=True):
            # Both sides are rounded, and one patch is the least.
            assert abs(found - side * scale) <= step + 1e-6
        assert tiling.num_tokens(width, height, None) == (size[0] // step) * (size[1] // step)
        assert tiling.num_tokens(width, height, 64) == 64


def test_split_makes_five_pictures_of_one() -> None:
    tiling = SplitTiling(tile_px=64)
    assert tiling.num_tokens(500, 300, 64) == 320
    assert SplitTiling(tile_px=64, probability=0).num_tokens(500, 300, 64) == 64
    assert SplitTiling(tile_px=64, thumbnail=False).num_tokens(500, 300, 64) == 256
    whole = SplitTiling(tile_px=70, keeps_aspect=True, patch_px=14)
    assert set(whole.plan(500, 300).sizes) == {(70, 42)}
    assert whole.num_tokens(500, 300, None) == 5 * 5 * 3
    quarters = [tile.resize((1, 1)).getpixel((0, 0))[0] for tile in tiling.cut(picture(64, 64))]
    assert quarters[0] < quarters[1] < quarters[3]
    assert quarters[0] < quarters[2] < quarters[3]


def test_which_samples_are_split_depends_on_id_and_seed_alone() -> None:
    names = [f"sample-{number}" for number in range(4000)]
    split = [is_sample_split(name, 7, 0.5) for name in names]
    assert [is_sample_split(name, 7, 0.5) for name in reversed(names)] == split[::-1]
    assert abs(sum(split) / len(split) - 0.5) < 0.03
    other = [is_sample_split(name, 8, 0.5) for name in names]
    same = sum(a == b for a, b in zip(split, other, strict=True))
    assert abs(same / len(names) - 0.5) < 0.03
    assert {is_sample_split(name, 7, 0.0) for name in names} == {False}
    assert {is_sample_split(name, 7, 1.0) for name in names} == {True}


def test_a_tiling_that_splits_can_be_told_not_to() -> None:
    tiling = SplitTiling(probability=0.5)
    counts = {is_split: tiling.split_or_not(is_split=is_split) for is_split in (True, False)}
    assert {key: one.plan(9, 9).num_encoded for key, one in counts.items()} == {True: 5, False: 1}
    assert CattyTiling().split_or_not(is_split=False) == CattyTiling()


EVERY: list[Tiling] = [
    CattyTiling(tile_px=48),
    CattyTiling(tile_px=48, thumbnail="never", max_tiles=6),
    CattyTiling(tile_px=48, thumbnail="several"),
    DynamicTiling(tile_px=48),
    DynamicTiling(tile_px=48, tie="nearest", thumbnail="always", min_tiles=2, max_tiles=5),
    SquareTiling(tile_px=48),
    NativeTiling(tile_px=112, patch_px=8),
    SplitTiling(tile_px=48),
    SplitTiling(tile_px=96, keeps_aspect=True, patch_px=8),
]


@pytest.mark.parametrize("tiling", EVERY, ids=repr)
def test_what_is_cut_is_what_was_planned(tiling: Tiling) -> None:
    for width, height in sizes(20, seed=3, most=300):
        image = picture(width, height)
        tiles = tiling.cut(image)
        plan = tiling.plan(width, height)
        assert [tile.size for tile in tiles] == list(plan.sizes)
        assert tiling.num_tokens(width, height, 7) == 7 * len(tiles)
        assert all(tile.mode == "RGB" for tile in tiles)


def test_tiles_hold_the_pixels_of_their_boxes() -> None:
    image = picture(640, 480)
    tiling = CattyTiling()
    plan = tiling.plan(640, 480)
    resized = np.asarray(image.resize(plan.resized, Image.Resampling.BILINEAR))
    *tiles, thumbnail = tiling.cut(image)
    for (left, top, right, low), tile in zip(plan.boxes, tiles, strict=True):
        assert np.array_equal(np.asarray(tile), resized[top:low, left:right])
    squashed = Image.fromarray(resized).resize((336, 336), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(thumbnail), np.asarray(squashed))


@pytest.mark.parametrize("tiling", EVERY, ids=repr)
def test_a_tiling_is_built_again_from_its_node(tiling: Tiling) -> None:
    assert TILINGS.build(with_name(tiling)) == tiling


def test_a_wrong_node_says_what_is_wrong() -> None:
    with pytest.raises(RecipeError, match="did you mean 'catty'"):
        TILINGS.build({"name": "caty"})
    with pytest.raises(RecipeError, match="min_tiles: found 5, expected at most max_tiles=3"):
        DynamicTiling(min_tiles=5, max_tiles=3)
    with pytest.raises(ValueError, match="counts no patches"):
        SquareTiling().num_tokens(10, 10, None)
