"""Ticks are round and never overlap; places follow the scale; runs stand after their parents."""

import itertools
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from consomme.report import model
from consomme.report.axes import (
    CHAR_PX,
    Scale,
    log_ticks,
    nice_ticks,
    read_number,
    short_number,
    without_overlap,
)
from consomme.report.charts import chart_drawing
from consomme.report.html import environment
from consomme.report.lineage import arrange, lineage_drawing
from consomme.report.svg import SvgDrawing


def svg_text(drawing: SvgDrawing) -> str:
    return environment().get_template("svg.html.j2").module.svg(drawing)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_inside_and_neither_few_nor_many(low, span, count):
    assume(span > abs(low) * 1e-9)
    ticks = nice_ticks(low, low + span, count)
    assert 1 <= len(ticks) <= count + 2
    assert all(low - span * 1e-6 <= t <= low + span * 1.000001 for t in ticks)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 1000, [1, 10, 100, 1000]),
        (1e-3, 1e5, [10.0**e for e in range(-3, 6)]),
        (2, 9, [2, 5]),
    ],
)
def test_log_ticks(low, high, expected):
    assert log_ticks(low, high, 6) == pytest.approx(expected)


@given(st.floats(0.01, 1e6), st.floats(1.1, 1e6), st.booleans(), st.sampled_from([340, 760]))
def test_labels_never_overlap(low, factor, is_log, width):
    scale = Scale(low=low, high=low * factor, start=50, stop=width - 14, is_log=is_log)
    ticks = (log_ticks if is_log else nice_ticks)(low, low * factor, 8)
    kept = without_overlap(ticks, scale, short_number)
    for left, right in itertools.pairwise(kept):
        room = scale(right) - scale(left)
        assert room >= (len(short_number(left)) + len(short_number(right))) * CHAR_PX / 2


def test_log_scale_puts_equal_ratios_at_equal_distances():
    scale = Scale(low=1, high=100, start=0, stop=200, is_log=True)
    assert [scale(v) for v in (1, 10, 100, 1e9, 0.1)] == pytest.approx([0, 100, 200, 200, 0])


@pytest.mark.parametrize(
    ("value", "short", "read"),
    [
        (0.0, "0", "0"),
        (0.25, "0.25", "0.250"),
        (-0.5, "-0.5", "−0.500"),
        (12.345, "12.345", "12.35"),
        (1500, "1,500", "1,500"),
        (20000.0, "20k", "20,000"),
        (3_000_000, "3M", "3,000,000"),
        (0.00002, "2e-5", "2.00e-05"),
        (float("nan"), None, "–"),
        (float("inf"), None, "∞"),
    ],
)
def test_numbers_as_words(value, short, read):
    assert short is None or short_number(value) == short
    assert read_number(value) == read


def test_histogram_bars_stand_where_the_counts_say():
    block = model.Histogram(series={"a": [10, 0]}, edges=[0, 1, 2], x_label="x")
    svg = svg_text(chart_drawing(block, 760))
    path = re.search(r'class="area s1" d="([^"]+)"', svg)[1]
    points = [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", path)]
    xs, ys = zip(*points, strict=True)
    assert (min(xs), max(xs)) == (52, 746)
    assert ys[1] == ys[2] < ys[3] == ys[4] == ys[0], "the first bin is full, the second empty"


def test_long_series_are_thinned_but_keep_both_ends():
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    block = model.Curves(series={"a": points}, x_label="x", y_label="y")
    svg = svg_text(chart_drawing(block, 760))
    drawn = re.search(r'points="([^"]+)"', svg)[1].split()
    assert len(drawn) == 400
    assert drawn[0].startswith("52.0,")
    assert drawn[-1].startswith("746.0,")


def nodes(*ids: str) -> list[model.LineageNode]:
    return [model.LineageNode(node_id=i, verb=i, title=i) for i in ids]


def test_runs_stand_after_their_parents_and_passing_arrows_get_a_lane():
    edges = [("data", "score"), ("score", "filter"), ("data", "train"), ("filter", "train")]
    layout = arrange(nodes("train", "filter", "score", "data"), edges)

    real = [[n for n in layer if "lane" not in n] for layer in layout.layers]
    assert real == [["data"], ["score"], ["filter"], ["train"]]
    assert [len(layer) for layer in layout.layers] == [1, 2, 2, 1]
    assert [len(route) for route in layout.routes] == [2, 2, 4, 2]
    block = model.Lineage(nodes=nodes("train", "filter", "score", "data"), edges=edges)
    svg = svg_text(lineage_drawing(block, vertical=True))
    assert svg.count('class="box"') == svg.count('class="head"') == 4


def test_broken_lineages_are_refused():
    with pytest.raises(ValueError, match="unknown node"):
        arrange(nodes("a"), [("a", "b")])
    with pytest.raises(ValueError, match="cycle"):
        arrange(nodes("a", "b"), [("a", "b"), ("b", "a")])


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=20),
    st.sampled_from([340, 760]),
)
def test_every_dot_is_inside_and_bears_its_label(places, width):
    dots = [model.Dot(label=f"n{k}", x=x, y=y) for k, (x, y) in enumerate(places)]
    block = model.Dots(dots=dots, x_label="seconds", y_label="right")
    svg = svg_text(chart_drawing(block, width))
    height = int(re.search(r'height="(\d+)"', svg)[1])
    found = re.findall(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(found) == len(dots)
    assert all(0 < float(cx) < width and 0 < float(cy) < height for cx, cy in found)
    for dot in dots:
        assert svg.count(f">{dot.label}<") == 1


def test_labels_of_dots_side_by_side_do_not_touch():
    dots = [model.Dot(label=f"{k}", x=1 + k * 0.02, y=0.5) for k in (10, 11, 12)]
    dots.append(model.Dot(label="far", x=5, y=0.1))
    block = model.Dots(dots=dots, x_label="seconds", y_label="right")
    svg = svg_text(chart_drawing(block, 760))
    labels = re.findall(r'x="([\d.]+)" y="([\d.]+)" text-anchor="start">(1[012])<', svg)
    boxes = [(float(x), float(x) + len(words) * CHAR_PX, float(y)) for x, y, words in labels]
    assert len(boxes) == 3
    for one, other in itertools.combinations(boxes, 2):
        apart = one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= 9
        assert apart, boxes


def test_a_dot_alone_and_dots_on_one_line_have_axes():
    for places in ([(2.0, 0.0)], [(0.0, 0.3), (4.0, 0.3)]):
        dots = [model.Dot(label="a", x=x, y=y) for x, y in places]
        block = model.Dots(dots=dots, x_label="seconds", y_label="right")
        svg = svg_text(chart_drawing(block, 340))
        assert "nan" not in svg
        assert svg.count('class="tick"') >= 1
