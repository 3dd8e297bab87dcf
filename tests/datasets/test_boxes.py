"""Boxes: text round trip, and intersection over union."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.datasets.boxes import BOX_PATTERN, LARGEST, iou, parse_boxes, scale_box, write_box

edges = st.tuples(st.integers(0, LARGEST), st.integers(0, LARGEST)).filter(lambda p: p[0] != p[1])
some_boxes = st.builds(
    lambda x, y: (min(x), min(y), max(x), max(y)),
    edges,
    edges,
)


@given(st.lists(some_boxes, max_size=4), st.text(alphabet="ab ,.0[", max_size=6))
def test_what_is_written_is_read_again(found, between):
    text = between + between.join(f" {write_box(box)} " for box in found)
    assert parse_boxes(text) == found
    assert all(re.fullmatch(BOX_PATTERN, write_box(box)) for box in found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat [1, 2, 30, 40].", [(1, 2, 30, 40)]),
        ("[ 0,0,999,999 ] and [5,5,6,6]", [(0, 0, 999, 999), (5, 5, 6, 6)]),
        ("[1,2,3]", []),
        ("[1,2,3,4,5]", []),
        ("[1,2,3,4000]", []),
        ("[0.1,0.2,0.3,0.4]", []),
        ("[30,2,3,40]", []),
        ("[7,7,7,9]", []),
        ("[١,٢,٣,٤]", []),
        ("", []),
    ],
)
def test_what_is_no_box_is_left_alone(text, found):
    assert parse_boxes(text) == found


@pytest.mark.parametrize(
    "text", ["[01,2,3,4]", "[1, 2,3,4]", "[1,2,3,1000]", "x[1,2,3,4]", "[1,2,3]"]
)
def test_the_pattern_takes_only_the_one_way_to_write_a_box(text):
    assert re.fullmatch(BOX_PATTERN, text) is None


def test_overlap_by_hand():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (2, 2, 4, 4)) == pytest.approx(4 / 100)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0.0


@given(some_boxes, some_boxes)
def test_overlap_is_what_counting_cells_gives(first, second):
    def cells(box):
        filled = np.zeros((LARGEST, LARGEST), dtype=bool)
        filled[box[1] : box[3], box[0] : box[2]] = True
        return filled

    ours, theirs = cells(first), cells(second)
    assert iou(first, second) == pytest.approx((ours & theirs).sum() / (ours | theirs).sum())
    assert iou(first, second) == iou(second, first)


def test_pixels_become_thousandths_of_the_side():
    assert scale_box((0, 0, 60, 60), 60, 60) == (0, 0, LARGEST, LARGEST)
    assert scale_box((30, 15, 60, 45), 60, 60) == (500, 250, 999, 749)
    assert scale_box((-5, 0, 700, 50), 640, 50) == (0, 0, 999, 999)
    assert scale_box((160, 120, 320, 240), 640, 480) == (250, 250, 500, 500)
