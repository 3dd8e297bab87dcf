"""Early stopping of the rounds of a loop, and the best round."""

from __future__ import annotations

from collections.abc import Sequence

from consomme.pipelines.loop.chain import Saturation


def is_saturated(values: Sequence[float | None], stop: Saturation) -> bool:
    """Whether the last `patience` rounds did not beat the best round before them.

    Args:
        values: Of the start (None if unknown) and of each round (None if it may not be chosen).
        stop: The rule.
    """
    return _since_best(values, stop)[1] >= stop.patience


def best_of(values: Sequence[float | None], stop: Saturation) -> int:
    """Return the best round; 0 is the start."""
    return _since_best(values, stop)[0]


def _since_best(values: Sequence[float | None], stop: Saturation) -> tuple[int, int]:
    """Return the best round so far, and the number of rounds since."""
    sign = 1.0 if stop.better == "higher" else -1.0
    best, best_value, stale = 0, values[0], 0
    for number, value in enumerate(values[1:], 1):
        is_better = value is not None and (
            best_value is None or sign * (value - best_value) > stop.min_gain
        )
        if is_better:
            best, best_value, stale = number, value, 0
        else:
            stale += 1
    return best, stale
