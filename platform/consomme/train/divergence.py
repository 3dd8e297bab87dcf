"""Notice that training has gone wrong, before its weights have.

One decision is made here: a loss is compared with the median of those before it, so a few hard
batches do not move the bar, and one explosion stands out.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from consomme.base.errors import DataError

REMEMBERED = 64
"""Losses that the next one is compared with."""

WARM = 8
"""Losses that have to be known before one can stand out."""


class DivergedError(DataError):
    """A step's loss or gradient is no number, or the loss stands out."""


class LossWatch:
    """Looks at every step's loss before it moves the weights."""

    def __init__(self, max_ratio: float | None = None, before: Iterable[float] = ()) -> None:
        """Set the bar.

        Args:
            max_ratio: Largest loss allowed, in medians of the last ones; None allows any number.
            before: Losses of the steps that are done.
        """
        self.max_ratio = max_ratio
        self._losses: deque[float] = deque(before, maxlen=REMEMBERED)

    def look(self, step: int, loss: float) -> None:
        """Judge the loss of a step, from 1.

        Raises:
            DivergedError: It is no number, or too large.
        """
        if not math.isfinite(loss):
            raise DivergedError(
                f"step {step}: the loss is {loss}; lower lr, or look at the data of this step"
            )
        if self.max_ratio is not None and len(self._losses) >= WARM:
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
        DivergedError: It is no number.
    """
    if not math.isfinite(norm):
        raise DivergedError(
            f"the gradients' norm is {norm}; lower lr, or look at the data of this step"
        )
    return norm
