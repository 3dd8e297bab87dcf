"""Masks touch exactly the pixels of the regions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consomme.vision.masking import Region, hull, mask_of, masked, masked_one_by_one

WHITE = Image.new("RGB", (20, 10), "white")


def regions(*boxes: tuple[float, float, float, float]) -> list[Region]:
    return [Region(box=box) for box in boxes]


def test_a_box_is_half_open() -> None:
    pixels = np.asarray(masked(WHITE, regions((3, 2, 7, 5))))
    black = (pixels == 0).all(axis=2)
    assert black.sum() == 4 * 3
    assert black[2:5, 3:7].all()
    assert (np.unique(pixels) == [0, 255]).all()


@given(
    st.lists(st.tuples(*[st.floats(-5, 30)] * 4), max_size=4).map(
        lambda boxes: [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    )
)
def test_pixels_are_masked_if_and_only_if_some_box_holds_them(
    boxes: list[tuple[float, float, float, float]],
) -> None:
    found = mask_of((20, 10), regions(*boxes), "boxes")
    for y in range(10):
        for x in range(20):
            # Edges that are a millionth of a pixel before a pixel are at it.
            inside = any(
                a - 1e-6 <= x < c - 1e-6 and b - 1e-6 <= y < d - 1e-6 for a, b, c, d in boxes
            )
            assert found[y, x] == inside, (x, y)


def test_several_boxes_are_united_and_not_hulled() -> None:
    two = regions((0, 0, 2, 2), (10, 5, 12, 7))
    assert mask_of((20, 10), two, "boxes").sum() == 8
    assert mask_of((20, 10), two, "hull").sum() == 12 * 7
    assert hull([one.box for one in two]) == (0, 0, 12, 7)
    assert mask_of((20, 10), two, "first").sum() == 4
    assert mask_of((20, 10), two, "image").all()
    first, second = masked_one_by_one(WHITE, two)
    assert (np.asarray(first)[5, 10] == 255).all()
    assert (np.asarray(second)[0, 0] == 255).all()
    assert (np.asarray(first)[0, 0] == 0).all()


def test_boxes_are_clipped_to_the_image_and_none_leaves_it_as_it_is() -> None:
    assert mask_of((20, 10), regions((-5, -5, 3, 100)), "boxes").sum() == 3 * 10
    assert masked(WHITE, []) is WHITE
    assert masked(WHITE, regions((30, 0, 40, 10))) is WHITE
    assert masked(WHITE, [], area="image") is WHITE


def test_corners_in_the_wrong_order_are_refused() -> None:
    for box in ((5, 0, 3, 4), (0, 4, 3, 4), (0, 0, float("nan"), 3), (0, 0, float("inf"), 3)):
        with pytest.raises(ValueError, match="expected"):
            Region(box=box)
    with pytest.raises(ValueError, match="outline"):
        Region(box=(0, 0, 2, 2), outlines=((1, 2, 3),))


def test_blur_keeps_what_is_outside_and_hides_what_is_inside() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    found = np.asarray(masked(image, regions((10, 10, 40, 30)), mask="blur"))
    where = mask_of(image.size, regions((10, 10, 40, 30)), "boxes")
    assert (found[~where] == np.asarray(image)[~where]).all()
    assert found[where].std() < 0.2 * np.asarray(image)[where].std()


def test_outlines_are_masked_and_not_their_boxes() -> None:
    one = Region(box=(0, 0, 8, 8), outlines=((0, 0, 8, 0, 0, 8),))
    inside = mask_of((10, 10), [one], "segments")
    assert inside[0, 1]
    assert not inside[7, 7]
    assert 25 <= inside.sum() <= 50
    with pytest.raises(ValueError, match="no outline"):
        mask_of((10, 10), regions((0, 0, 2, 2)), "segments")


def test_transparent_and_grey_images_are_masked_as_rgb() -> None:
    grey = Image.new("L", (4, 4), 200)
    found = masked(grey, regions((0, 0, 1, 1)))
    assert found.mode == "RGB"
    assert found.getpixel((0, 0)) == (0, 0, 0)
    assert found.getpixel((1, 1)) == (200, 200, 200)
