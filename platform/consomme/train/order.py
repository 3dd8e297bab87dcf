"""The order in which samples are trained on: a function of the seed, for any number of ranks.

Two decisions are made here. How many samples of each source a step draws is worked out exactly from
the step's number alone. And a source's samples are shuffled twice: its units are, and then the
samples of some neighbouring units, so that no more than these has to be read to know what comes
next, however much was trained on before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from consomme.base.errors import DataError


class Mixture:
    """Which source each sample of a step comes from."""

    def __init__(self, weights: Sequence[float], global_batch: int, seed: int) -> None:
        """Work out the shares.

        Args:
            weights: Relative weight of each source.
            global_batch: Samples per step over all ranks.
            seed: Of the order in a step.

        Raises:
            DataError: None has a weight.
        """
        left = sum(Fraction(weight) for weight in weights)
        if left <= 0:
            raise DataError("no data source has a weight above 0, so there is nothing to train on")
        self.shares: list[Fraction] = []
        """Share of each source in what the sources before it leave over; exact."""
        for weight in weights:
            self.shares.append(Fraction(weight) / left if left else Fraction(0))
            left -= Fraction(weight)
        self.global_batch, self.seed = global_batch, seed

    def step(self, step: int) -> list[int]:
        """Source of each sample of one step, in order."""
        quotas = zip(self.drawn(step), self.drawn(step + 1), strict=True)
        found = [
            source for source, (before, after) in enumerate(quotas) for _ in range(after - before)
        ]
        random.Random(f"mix-{self.seed}-{step}").shuffle(found)
        return found

    def drawn(self, step: int) -> list[int]:
        """Samples drawn from each source before `step`; never falls, and adds up to the batches.

        Each source takes its share of what those before it left, rounded to the nearest.
        """
        left = self.global_batch * step
        taken = []
        for share in self.shares:
            taken.append(math.floor(share * left + Fraction(1, 2)))
            left -= taken[-1]
        return taken


class UnitOrder:
    """The order of one source, epoch by epoch; an epoch is every sample once."""

    def __init__(self, num_units: int, *, seed: int, source: int, window: int) -> None:
        """Keep what the order depends on.

        Args:
            num_units: Units of the source; at least one.
            seed: Of every shuffle.
            source: Number of the source.
            window: Units whose samples are shuffled together.
        """
        self.num_units, self.window = num_units, window
        self._name = f"{seed}-{source}"
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return math.ceil(self.num_units / self.window)

    def units(self, epoch: int, window: int) -> list[int]:
        """Units of a window, in the order in which they are read."""
        return self._units(epoch)[window * self.window : (window + 1) * self.window]

    def arrange(self, epoch: int, window: int, num_samples: int) -> list[int]:
        """Say in which order the samples of a window come, counted through its units."""
        order = list(range(num_samples))
        random.Random(f"window-{self._name}-{epoch}-{window}").shuffle(order)
        return order

    def _units(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            order = list(range(self.num_units))
            random.Random(f"order-{self._name}-{epoch}").shuffle(order)
            self._epoch = (epoch, order)
        return self._epoch[1]
