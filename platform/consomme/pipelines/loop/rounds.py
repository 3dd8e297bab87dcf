"""When the rounds of a loop end, and which of them was the best."""

from __future__ import annotations

from collections.abc import Sequence

from consomme.pipelines.loop.chain import Saturation


def is_saturated(values: Sequence[float | None], stop: Saturation) -> bool:
    """Whether as many rounds in a row as there is patience were not better than the best before.

    Args:
        values: Of the start (None if unknown) and of each round.
        stop: The rule.
    """
    return _since_best(values, stop)[1] >= stop.patience


def best_of(values: Sequence[float | None], stop: Saturation) -> int:
    """The round after which nothing was gained; 0 is the start."""
    return _since_best(values, stop)[0]


def _since_best(values: Sequence[float | None], stop: Saturation) -> tuple[int, int]:
    """The best round so far, and how many rounds in a row brought nothing."""
    sign = 1.0 if stop.better == "higher" else -1.0
    best, best_value, stale = 0, values[0], 0
    for number, value in enumerate(values[1:], 1):
        assert value is not None
        if best_value is None or sign * (value - best_value) > stop.min_gain:
            best, best_value, stale = number, value, 0
        else:
            stale += 1
    return best, stale
