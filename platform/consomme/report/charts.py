"""Draws charts as SVG text, once for a wide window and once for a narrow one.

The one decision: no scaling of words. A chart drawn 720 pixels wide is unreadable on a telephone,
so each is drawn at two widths and the style sheet shows one of them. Colours are classes (`s1` …
`s6`); the style sheet gives them their light and dark values.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

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

NUM_COLOURS = 6
WIDTHS = {"wide": 760, "narrow": 340}
"""Class of a drawing -> its width in pixels."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 24, 42
_MAX_POINTS = 400


def colour_class(index: int) -> str:
    """Return the class of the n-th series."""
    return f"s{index % NUM_COLOURS + 1}"


def histogram_svg(block: Histogram, width: int) -> str:
    """Draw the bins of each group as a stepped area, the cut as a line."""
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
    parts = [_kept_region(block, x, height)]
    y_label = "share of each group" if block.normalise else "samples"
    parts += _frame(x, y, width, height, block.x_label, y_label)
    for index, counts in enumerate(values.values()):
        path = _steps_path(counts, block.edges, x, y)
        parts.append(f'<path class="area {colour_class(index)}" d="{path}"/>')
    parts.append(_cut_line(block, x, width, height))
    return _svg(parts, width, height, _describe_histogram(block))


def curves_svg(block: Curves, width: int) -> str:
    """Draw each series as a line."""
    height = _height(width)
    points = [p for series in block.series.values() for p in series if math.isfinite(p[1])]
    xs, ys = [p[0] for p in points] or [0.0, 1.0], [p[1] for p in points] or [0.0, 1.0]
    span = max(ys) - min(ys) or abs(max(ys)) or 1.0
    low = min(ys) - 0.05 * span
    # A quantity that is never negative is not shown below zero.
    low = max(low, 0.0) if min(ys) >= 0 else low
    x = Scale(low=min(xs), high=max(xs), start=_LEFT, stop=width - _RIGHT)
    y = Scale(low=low, high=max(ys) + 0.05 * span, start=height - _BOTTOM, stop=_TOP)
    parts = _frame(x, y, width, height, block.x_label, block.y_label)
    for index, series in enumerate(block.series.values()):
        shown = [p for p in _thin(series) if math.isfinite(p[1])]
        places = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in shown)
        if len(shown) == 1:
            px, py = shown[0]
            parts.append(
                f'<circle class="dot {colour_class(index)}" '
                f'cx="{x(px):.1f}" cy="{y(py):.1f}" r="3"/>'
            )
        parts.append(f'<polyline class="line {colour_class(index)}" points="{places}"/>')
    return _svg(parts, width, height, _describe_curves(block))


def dots_svg(block: Dots, width: int) -> str:
    """Draw each dot with its label, which stands where it touches no other."""
    height = _height(width)
    xs, ys = [dot.x for dot in block.dots], [dot.y for dot in block.dots]
    (left, right), (low, high) = _room(xs), _room(ys)
    x = Scale(low=left, high=right, start=_LEFT, stop=width - _RIGHT)
    y = Scale(low=low, high=high, start=height - _BOTTOM, stop=_TOP)
    parts = _frame(x, y, width, height, block.x_label, block.y_label)
    taken = [(x(dot.x) - 4, x(dot.x) + 4, y(dot.y)) for dot in block.dots]
    for dot in block.dots:
        at, up = x(dot.x), y(dot.y)
        parts.append(
            f'<circle class="dot s1" cx="{at:.1f}" cy="{up:.1f}" r="3.5">'
            f"<title>{escape(_describe_dot(block, dot))}</title></circle>"
        )
        long = len(dot.label) * CHAR_PX
        places = [(at + 6 if is_right else at - 6 - long, up + down) for is_right, down in _BESIDE]
        begin, base = next((p for p in places if _is_free(p, long, taken)), places[0])
        taken.append((begin, begin + long, base - 4))
        parts.append(_text(begin, base, dot.label, "start"))
    return _svg(parts, width, height, f"{block.y_label} over {block.x_label}.")


_BESIDE = ((True, 4), (False, 4), (True, -7), (True, 15), (False, -7), (False, 15))
"""Where a label may stand: to the right of its dot or to the left, and pixels below it."""


def _is_free(
    place: tuple[float, float], long: float, taken: Sequence[tuple[float, float, float]]
) -> bool:
    """Whether words at a place touch none of the spans (left, right, height) that are taken."""
    left, base = place
    return not any(
        left < end and begin < left + long and abs(base - 4 - height) < 9
        for begin, end, height in taken
    )


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis with a margin; what is never negative is not shown below zero."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    lowest = low - 0.08 * span
    return max(lowest, 0.0) if low >= 0 else lowest, high + 0.08 * span


def _describe_dot(block: Dots, dot: Dot) -> str:
    where = f"{block.x_label} {read_number(dot.x)}, {block.y_label} {read_number(dot.y)}"
    return f"{dot.label}: {where}"


def legend(names: Mapping[str, str]) -> str:
    """Write the legend as HTML, so that it wraps; values stand behind their names."""
    if not any(names):
        return ""
    items = "".join(
        f'<li><i class="key {colour_class(i)}"></i>{escape(name)}'
        + (f' <span class="muted">{escape(value)}</span>' if value else "")
        + "</li>"
        for i, (name, value) in enumerate(names.items())
    )
    return f'<ul class="legend">{items}</ul>'


def _height(width: int) -> int:
    return 280 if width > 500 else 220


def _svg(parts: Sequence[str], width: int, height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _frame(x: Scale, y: Scale, width: int, height: int, x_label: str, y_label: str) -> list[str]:
    """Draw grid lines, ticks and the names of both axes."""
    base = height - _BOTTOM
    parts = []
    for tick in nice_ticks(y.low, y.high, 4):
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text(_LEFT - 8, at + 4, short_number(tick), "end"))
    count = max(3, (width - _LEFT - _RIGHT) // 90)
    ticks = (log_ticks if x.is_log else nice_ticks)(x.low, x.high, count)
    for tick in without_overlap(ticks, x, short_number):
        at = x(tick)
        parts.append(
            f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 4}"/>'
        )
        # Words at the edges are pushed inwards instead of being cut.
        half = len(short_number(tick)) * 3.2
        place = min(max(at, half + 2), width - half - 2)
        parts.append(_text(place, base + 17, short_number(tick), "middle"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(_text((_LEFT + width - _RIGHT) / 2, height - 6, x_label, "middle", "name"))
    parts.append(_text(2, 12, y_label, "start", "name"))
    return parts


def _text(x: float, y: float, words: str, anchor: str, kind: str = "label") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _steps_path(values: Sequence[float], edges: Sequence[float], x: Scale, y: Scale) -> str:
    path = [f"M{x(edges[0]):.1f},{y(0):.1f}"]
    for value, left, right in zip(values, edges[:-1], edges[1:], strict=True):
        path.append(f"L{x(left):.1f},{y(value):.1f}L{x(right):.1f},{y(value):.1f}")
    path.append(f"L{x(edges[-1]):.1f},{y(0):.1f}Z")
    return "".join(path)


def _kept_region(block: Histogram, x: Scale, height: int) -> str:
    if block.cut is None or block.kept_side is None:
        return ""
    at = x(block.cut)
    start, stop = (x.start, at) if block.kept_side == "left" else (at, x.stop)
    return (
        f'<rect class="kept" x="{start:.1f}" y="{_TOP}" width="{max(stop - start, 0):.1f}" '
        f'height="{height - _BOTTOM - _TOP}"/>'
    )


def _cut_line(block: Histogram, x: Scale, width: int, height: int) -> str:
    if block.cut is None:
        return ""
    at = x(block.cut)
    words = f"cut {block.cut:.4g}"
    if block.kept_side is not None:
        words = f"← kept · {words}" if block.kept_side == "left" else f"{words} · kept →"
    half = len(words) * 3.2
    # The name of the y axis stands at the left end of this line.
    place = min(max(at, half + 130), width - half - 2)
    return (
        f'<line class="cut" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 4}" y2="{height - _BOTTOM}"/>'
        + _text(place, _TOP - 9, words, "middle", "cut-label")
    )


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
