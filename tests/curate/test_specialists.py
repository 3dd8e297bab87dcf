"""Boxes that teach nothing are dropped, each rule at its very limit."""

import pytest

from consomme.base.errors import RecipeError
from consomme.curate.specialists import GroundingRules, LabelledBox


def boxes(*found):
    return [LabelledBox(label=label, box=box) for label, box in found]


def test_a_box_of_more_than_seven_tenths_is_dropped_and_one_of_just_that_stays():
    small = ("dog", (10, 10, 40, 40))
    at_limit, above = ("sky", (0, 0, 100, 70)), ("sky", (0, 0, 100, 71))
    kept = GroundingRules()(boxes(small, at_limit, above), width=100, height=100)
    assert kept.boxes == tuple(boxes(small, at_limit))
    assert (kept.num_large, kept.num_outside, kept.crowded) == (1, 0, ())


def test_what_lies_outside_of_the_picture_does_not_count():
    wide = ("sea", (-500, 50, 600, 300))
    gone = ("bird", (120, 10, 140, 20))
    inverted = ("ball", (30, 30, 20, 20))
    kept = GroundingRules()(boxes(wide, gone, inverted), width=100, height=100)
    assert kept.boxes == tuple(boxes(wide))
    assert (kept.num_large, kept.num_outside) == (0, 2)


def test_more_than_three_of_a_class_drop_the_picture():
    row = [("egg", (10 * n, 0, 10 * n + 8, 8)) for n in range(4)]
    hen = ("hen", (50, 50, 90, 90))
    rules = GroundingRules()
    assert rules(boxes(*row[:3], hen), width=100, height=100).boxes == tuple(boxes(*row[:3], hen))
    crowd = rules(boxes(*row, hen), width=100, height=100)
    assert (crowd.boxes, crowd.crowded) == ((), ("egg",))
    assert GroundingRules(max_per_class=4)(boxes(*row), width=100, height=100).boxes


def test_a_box_that_is_dropped_does_not_make_a_crowd():
    row = [("egg", (10 * n, 0, 10 * n + 8, 8)) for n in range(3)]
    whole = ("egg", (0, 0, 100, 100))
    kept = GroundingRules()(boxes(whole, *row), width=100, height=100)
    assert len(kept.boxes) == 3
    assert GroundingRules()([], width=100, height=100).boxes == ()


def test_limits_are_checked():
    with pytest.raises(RecipeError, match="expected a share"):
        GroundingRules(max_area_fraction=70)
    with pytest.raises(RecipeError, match="max_per_class: found 0"):
        GroundingRules(max_per_class=0)
