"""Scales, ticks and number formats of charts.

Labels must not overlap: ticks are round numbers, and a tick is left out if its label would touch
its neighbour's, by an estimate of the label's width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CHAR_PX = 6.4
"""Estimated width of one character of an 11-pixel label."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Map values to pixel positions, linearly or logarithmically."""

    low: float
    """Value at `start`."""

    high: float
    """Value at `stop`."""

    start: float
    """Position of `low`, in pixels."""

    stop: float
    """Position of `high`, in pixels."""

    is_log: bool = False
    """Logarithmic; `low` must be positive."""

    def __call__(self, value: float) -> float:
        """Return the position of a value, clamped to the scale."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers within [low, high]: multiples of 1, 2 or 5 times ten^n."""
    if high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers of a logarithmic scale: powers of ten, and finer ones if too few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [d * 10.0**e for e in exponents for d in digits]
        ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) >= min(count, 4):
            return ticks
    return ticks if len(ticks) > 1 else nice_ticks(low, high, count)


def without_overlap(
    ticks: Sequence[float], position: Callable[[float], float], label: Callable[[float], str]
) -> list[float]:
    """Leave out ticks whose label would touch the label before."""
    kept: list[float] = []
    edge = -math.inf
    for tick in ticks:
        half = len(label(tick)) * CHAR_PX / 2 + 4
        if position(tick) - half >= edge:
            kept.append(tick)
            edge = position(tick) + half
    return kept


def short_number(value: float) -> str:
    """Format a number for an axis: `0.25`, `1,500`, `20k`, `3M`."""
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+", "e").replace("e0", "e")
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            unit = 1e3 if letter == "k" else limit
            return f"{value / unit:g}{letter}"
    return f"{value:,.6g}" if size < 1000 else f"{value:,.0f}"


def read_number(value: float) -> str:
    """Format a number for text: three significant digits, thousands separated by commas."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        text = f"{value:,.0f}"
    elif size == 0:
        text = "0"
    elif size >= 100:
        text = f"{value:.1f}"
    elif size >= 10:
        text = f"{value:.2f}"
    elif size >= 0.001:
        text = f"{value:.3f}"
    else:
        text = f"{value:.2e}"
    return text.replace("-", "−", 1) if text.startswith("-") else text
