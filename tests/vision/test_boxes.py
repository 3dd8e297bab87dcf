"""Boxes in texts and cells become regions in pixels."""

import json

import pytest

from consomme.vision.boxes import box_in, boxes_in, read_regions

SIZES = [(100, 50)]


def boxes(value: object, sizes: list[tuple[int, int]] = SIZES, **options: object) -> list[object]:
    return [[one.box for one in own] for own in read_regions(value, sizes, **options)]


def test_cells_of_one_image() -> None:
    four = [10, 5, 20, 15]
    assert boxes(four) == [[(10, 5, 20, 15)]]
    assert boxes([four, [0, 0, 5, 5]]) == [[(10, 5, 20, 15), (0, 0, 5, 5)]]
    assert boxes([[four]]) == [[(10, 5, 20, 15)]]
    assert boxes(json.dumps([four])) == [[(10, 5, 20, 15)]]
    assert boxes({"bbox": four}) == [[(10, 5, 20, 15)]]
    assert boxes(four, box_is="size") == [[(10, 5, 30, 20)]]
    assert boxes([100, 100, 200, 300], scale=1000.0) == [[(10, 5, 20, 15)]]
    for empty in (None, "", [], [[]]):
        assert boxes(empty) == [[]], empty


def test_cells_of_several_images() -> None:
    two = [(100, 50), (20, 20)]
    assert boxes([[[10, 5, 20, 15]], [[1, 1, 2, 2]]], two) == [[(10, 5, 20, 15)], [(1, 1, 2, 2)]]
    assert boxes([[10, 5, 20, 15], None], two) == [[(10, 5, 20, 15)], []]
    with pytest.raises(ValueError, match="each of 2 images"):
        boxes([[10, 5, 20, 15]], two)


def test_outlines_are_scaled() -> None:
    value = {"box": [0, 0, 500, 500], "segmentation": [[0, 0, 500, 0, 0, 500]]}
    ((region,),) = read_regions(value, SIZES, 1000)
    assert region.outlines == ((0, 0, 50, 0, 0, 25),)


def test_what_is_no_box_is_refused() -> None:
    for value, message in (
        ([20, 5, 10, 15], "left < right"),
        ([10, 5, 2000, 15], "beyond the image"),
        ("no json", "as JSON"),
        ([[1, 2, 3]], "four numbers"),
        ({"segmentation": []}, "`box`"),
        ({"box": [0, 0, 1, 1], "segmentation": {"counts": "x"}}, "polygons"),
    ):
        with pytest.raises(ValueError, match=message):
            boxes(value)


def test_all_boxes_of_an_answer_are_read() -> None:
    text = "a star [10, 20, 30, 40] and a circle (500,600),(700,800), nothing at [9, 9, 1, 1]"
    assert box_in(text, 1000) == (0.01, 0.02, 0.03, 0.04)
    assert boxes_in(text, 1000) == [(0.01, 0.02, 0.03, 0.04), (0.5, 0.6, 0.7, 0.8)]
    assert len(boxes_in("<loc0000><loc0000><loc0512><loc0512> cat" * 2, 1000)) == 2
