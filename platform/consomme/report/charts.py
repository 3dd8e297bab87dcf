"""Draw charts, once for a wide window and once for a narrow one.

Text must not be scaled: a chart drawn 760 pixels wide is unreadable on a phone. So each chart is
drawn at two widths, and the style sheet shows one of them. Colours are classes (`s1` … `s6`), to
which the style sheet gives light and dark values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consomme.report.axes import (
    CHAR_PX,
    Scale,
    log_ticks,
    nice_ticks,
    read_number,
    short_number,
    without_overlap,
)
from consomme.report.model import Curves, Dot, Dots, Histogram
from consomme.report.svg import SvgDrawing, SvgElement, title

NUM_COLOURS = 6
WIDTHS = {"wide": 760, "narrow": 340}
"""Class of a drawing -> its width in pixels."""

Chart = Histogram | Curves | Dots
"""A block that is drawn over two axes."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 24, 42
_MAX_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One series in a legend."""

    colour_class: str
    """Class that carries the colour."""

    name: str
    """Name of the series."""

    value: str
    """Shown after the name; may be empty."""


def chart_drawing(block: Chart, width: int) -> SvgDrawing:
    """Draw a chart at a width in pixels."""
    match block:
        case Histogram():
            return draw_histogram(block, width)
        case Curves():
            return draw_curves(block, width)
        case Dots():
            return draw_dots(block, width)


def legend(block: Chart) -> list[LegendEntry]:
    """Return the legend: sample counts for histograms, last values for curves, none for dots."""
    values: Mapping[str, str]
    match block:
        case Histogram():
            values = {name: f"{sum(counts):,.0f}" for name, counts in block.series.items()}
        case Curves():
            values = {n: read_number(s[-1][1]) if s else "" for n, s in block.series.items()}
        case Dots():
            values = {}
    return [
        LegendEntry(colour_class=colour_class(index), name=name, value=value)
        for index, (name, value) in enumerate(values.items())
    ]


def colour_class(index: int) -> str:
    """Return the class of the n-th series."""
    return f"s{index % NUM_COLOURS + 1}"


def draw_histogram(block: Histogram, width: int) -> SvgDrawing:
    """Draw the bins of each group as a stepped area, and the cut as a line."""
    height = _height(width)
    x = Scale(
        low=block.edges[0],
        high=block.edges[-1],
        start=_LEFT,
        stop=width - _RIGHT,
        is_log=block.log_x,
    )
    values = {name: _shares(c) if block.normalise else list(c) for name, c in block.series.items()}
    top = max((max(v, default=0.0) for v in values.values()), default=0.0) or 1.0
    y = Scale(low=0.0, high=top * 1.06, start=height - _BOTTOM, stop=_TOP)
    elements = _kept_region(block, x, height)
    y_label = "share of each group" if block.normalise else "samples"
    elements += _axes(x, y, width, height, block.x_label, y_label)
    for index, counts in enumerate(values.values()):
        path = _steps_path(counts, block.edges, x, y)
        attributes = {"class": f"area {colour_class(index)}", "d": path}
        elements.append(SvgElement(tag="path", attributes=attributes))
    elements += _cut_line(block, x, width, height)
    return _drawing(elements, width, height, _describe_histogram(block))


def draw_curves(block: Curves, width: int) -> SvgDrawing:
    """Draw each series as a line."""
    height = _height(width)
    points = [p for series in block.series.values() for p in series if math.isfinite(p[1])]
    xs, ys = [p[0] for p in points] or [0.0, 1.0], [p[1] for p in points] or [0.0, 1.0]
    span = max(ys) - min(ys) or abs(max(ys)) or 1.0
    low = min(ys) - 0.05 * span
    # The axis of a non-negative quantity does not go below zero.
    low = max(low, 0.0) if min(ys) >= 0 else low
    x = Scale(low=min(xs), high=max(xs), start=_LEFT, stop=width - _RIGHT)
    y = Scale(low=low, high=max(ys) + 0.05 * span, start=height - _BOTTOM, stop=_TOP)
    elements = _axes(x, y, width, height, block.x_label, block.y_label)
    for index, series in enumerate(block.series.values()):
        drawn = [p for p in _thin(series) if math.isfinite(p[1])]
        if len(drawn) == 1:
            elements.append(_circle(x(drawn[0][0]), y(drawn[0][1]), "3", colour_class(index)))
        attributes = {
            "class": f"line {colour_class(index)}",
            "points": " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in drawn),
        }
        elements.append(SvgElement(tag="polyline", attributes=attributes))
    return _drawing(elements, width, height, _describe_curves(block))


def draw_dots(block: Dots, width: int) -> SvgDrawing:
    """Draw each dot with its label, placed where it overlaps no other label or dot."""
    height = _height(width)
    xs, ys = [dot.x for dot in block.dots], [dot.y for dot in block.dots]
    (left, right), (low, high) = _padded_range(xs), _padded_range(ys)
    x = Scale(low=left, high=right, start=_LEFT, stop=width - _RIGHT)
    y = Scale(low=low, high=high, start=height - _BOTTOM, stop=_TOP)
    elements = _axes(x, y, width, height, block.x_label, block.y_label)
    occupied = [(x(dot.x) - 4, x(dot.x) + 4, y(dot.y)) for dot in block.dots]
    for dot in block.dots:
        cx, cy = x(dot.x), y(dot.y)
        radius, colour = ("2", "s2") if dot.is_other else ("3.5", "s1")
        elements.append(_circle(cx, cy, radius, colour, title(_describe_dot(block, dot))))
        if not dot.label:
            continue
        length = len(dot.label) * CHAR_PX
        positions = [
            (cx + 6 if is_right else cx - 6 - length, cy + below)
            for is_right, below in _LABEL_POSITIONS
        ]
        start, base = next((p for p in positions if _is_free(p, length, occupied)), positions[0])
        occupied.append((start, start + length, base - 4))
        elements.append(_text(start, base, dot.label, "start"))
    return _drawing(elements, width, height, f"{block.y_label} over {block.x_label}.")


_LABEL_POSITIONS = ((True, 4), (False, 4), (True, -7), (True, 15), (False, -7), (False, 15))
"""Positions of a label, best first: right of its dot or left of it, and pixels below it."""


def _is_free(
    position: tuple[float, float], length: float, occupied: Sequence[tuple[float, float, float]]
) -> bool:
    """Whether a label at a position overlaps none of the occupied spans (left, right, height)."""
    left, base = position
    return not any(
        left < end and begin < left + length and abs(base - 4 - height) < 9
        for begin, end, height in occupied
    )


def _padded_range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis with a margin, which never takes a non-negative quantity below zero."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    lowest = low - 0.08 * span
    return max(lowest, 0.0) if low >= 0 else lowest, high + 0.08 * span


def _describe_dot(block: Dots, dot: Dot) -> str:
    values = f"{block.x_label} {read_number(dot.x)}, {block.y_label} {read_number(dot.y)}"
    return f"{dot.label}: {values}" if dot.label else values


def _height(width: int) -> int:
    return 280 if width > 500 else 220


def _drawing(elements: Sequence[SvgElement], width: int, height: int, label: str) -> SvgDrawing:
    return SvgDrawing(
        view_box=f"0 0 {width} {height}",
        width=width,
        height=height,
        label=label,
        elements=elements,
    )


def _axes(
    x: Scale, y: Scale, width: int, height: int, x_label: str, y_label: str
) -> list[SvgElement]:
    """Draw grid lines, ticks and the names of both axes."""
    base, right = height - _BOTTOM, width - _RIGHT
    elements = []
    for tick in nice_ticks(y.low, y.high, 4):
        at = y(tick)
        elements.append(_line("grid", _LEFT, right, f"{at:.1f}", f"{at:.1f}"))
        elements.append(_text(_LEFT - 8, at + 4, short_number(tick), "end"))
    count = max(3, (width - _LEFT - _RIGHT) // 90)
    ticks = (log_ticks if x.is_log else nice_ticks)(x.low, x.high, count)
    for tick in without_overlap(ticks, x, short_number):
        at = x(tick)
        elements.append(_line("tick", f"{at:.1f}", f"{at:.1f}", base, base + 4))
        # Labels at the edges are moved inwards instead of being cut off.
        half = len(short_number(tick)) * 3.2
        centre = min(max(at, half + 2), width - half - 2)
        elements.append(_text(centre, base + 17, short_number(tick), "middle"))
    elements.append(_line("axis", _LEFT, right, base, base))
    elements.append(_text((_LEFT + right) / 2, height - 6, x_label, "middle", "name"))
    elements.append(_text(2, 12, y_label, "start", "name"))
    return elements


def _line(kind: str, x1: str | int, x2: str | int, y1: str | int, y2: str | int) -> SvgElement:
    attributes = {"class": kind, "x1": x1, "x2": x2, "y1": y1, "y2": y2}
    return SvgElement(tag="line", attributes=attributes)


def _circle(cx: float, cy: float, radius: str, colour: str, *children: SvgElement) -> SvgElement:
    attributes = {"class": f"dot {colour}", "cx": f"{cx:.1f}", "cy": f"{cy:.1f}", "r": radius}
    return SvgElement(tag="circle", attributes=attributes, children=children)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> SvgElement:
    attributes = {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    return SvgElement(tag="text", attributes=attributes, text=text)


def _steps_path(values: Sequence[float], edges: Sequence[float], x: Scale, y: Scale) -> str:
    path = [f"M{x(edges[0]):.1f},{y(0):.1f}"]
    for value, left, right in zip(values, edges[:-1], edges[1:], strict=True):
        path.append(f"L{x(left):.1f},{y(value):.1f}L{x(right):.1f},{y(value):.1f}")
    path.append(f"L{x(edges[-1]):.1f},{y(0):.1f}Z")
    return "".join(path)


def _kept_region(block: Histogram, x: Scale, height: int) -> list[SvgElement]:
    if block.cut is None or block.kept_side is None:
        return []
    at = x(block.cut)
    start, stop = (x.start, at) if block.kept_side == "left" else (at, x.stop)
    attributes: dict[str, str | float] = {
        "class": "kept",
        "x": f"{start:.1f}",
        "y": _TOP,
        "width": f"{max(stop - start, 0):.1f}",
        "height": height - _BOTTOM - _TOP,
    }
    return [SvgElement(tag="rect", attributes=attributes)]


def _cut_line(block: Histogram, x: Scale, width: int, height: int) -> list[SvgElement]:
    if block.cut is None:
        return []
    at = x(block.cut)
    label = f"cut {block.cut:.4g}"
    if block.kept_side is not None:
        label = f"← kept · {label}" if block.kept_side == "left" else f"{label} · kept →"
    half = len(label) * 3.2
    # The name of the y axis occupies the left end of this line of text.
    centre = min(max(at, half + 130), width - half - 2)
    return [
        _line("cut", f"{at:.1f}", f"{at:.1f}", _TOP - 4, height - _BOTTOM),
        _text(centre, _TOP - 9, label, "middle", "cut-label"),
    ]


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [c / total for c in counts] if total else [0.0 for _ in counts]


def _thin(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep at most `_MAX_POINTS` points, the first and the last among them."""
    if len(series) <= _MAX_POINTS:
        return list(series)
    step = (len(series) - 1) / (_MAX_POINTS - 1)
    return [series[round(i * step)] for i in range(_MAX_POINTS)]


def _describe_histogram(block: Histogram) -> str:
    groups = ", ".join(f"{n}: {sum(c):,.0f} samples" for n, c in block.series.items())
    cut = f"; cut at {read_number(block.cut)}" if block.cut is not None else ""
    kept = f", {block.kept_side} side kept" if block.kept_side else ""
    return f"Histogram of {block.x_label}. {groups}{cut}{kept}."


def _describe_curves(block: Curves) -> str:
    ends = "; ".join(
        f"{name} from {read_number(s[0][1])} to {read_number(s[-1][1])}"
        for name, s in block.series.items()
        if s
    )
    return f"{block.y_label} over {block.x_label}. {ends}."
