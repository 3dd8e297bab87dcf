"""Detect that training has diverged before the step changes the weights.

A loss is compared with the running median: a few hard batches do not move the median, while one
exploding loss stands out.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from consomme.base.errors import DataError

WINDOW = 64
"""Losses that the running median is taken over."""

MIN_LOSSES = 8
"""Losses that have to be known before a loss is compared with their median."""


class DivergedError(DataError):
    """A step's loss or gradient norm is not finite, or its loss exceeds the limit."""


class LossWatch:
    """Checks the loss of every step before the step changes the weights."""

    def __init__(self, max_ratio: float | None = None, before: Iterable[float] = ()) -> None:
        """Set the limit.

        Args:
            max_ratio: Largest loss allowed, as a multiple of the running median; None allows any
                finite loss.
            before: Losses of the steps that are done.
        """
        self.max_ratio = max_ratio
        self._losses: deque[float] = deque(before, maxlen=WINDOW)

    def check(self, step: int, loss: float) -> None:
        """Check the loss of a step, counted from 1.

        Raises:
            DivergedError: The loss is not finite, or too large.
        """
        if not math.isfinite(loss):
            raise DivergedError(
                f"step {step}: the loss is {loss}; lower lr, or look at the data of this step"
            )
        if self.max_ratio is not None and len(self._losses) >= MIN_LOSSES:
            median = statistics.median(self._losses)
            if loss > self.max_ratio * median:
                raise DivergedError(
                    f"step {step}: the loss is {loss:.4g}, more than max_loss_ratio="
                    f"{self.max_ratio:g} times the {median:.4g} of the steps before; lower lr, or"
                    " look at the data of this step"
                )
        self._losses.append(loss)


def check_norm(norm: float) -> float:
    """Return the norm of all gradients.

    Raises:
        DivergedError: The norm is not finite.
    """
    if not math.isfinite(norm):
        raise DivergedError(
            f"the gradients' norm is {norm}; lower lr, or look at the data of this step"
        )
    return norm
