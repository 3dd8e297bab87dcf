"""The order in which samples are trained on: a function of the seed, the same for any world size.

How many samples a step draws from each source follows exactly from the number of the step; or, if
sources share out tokens, from the tokens of all samples drawn before. Samples
of a source are shuffled twice: first the order of its units, then the samples of a window of
consecutive units. So only one window has to be read to know the next sample, however many steps
were trained before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from consomme.base.errors import DataError


class Mixture:
    """Decides which source each sample of a step comes from."""

    def __init__(self, weights: Sequence[float], global_batch: int, seed: int) -> None:
        """Work out the shares of the sources.

        Args:
            weights: Relative weight of each source.
            global_batch: Samples per step over all ranks.
            seed: Seed of the order of sources within a step.

        Raises:
            DataError: No source has a weight above 0.
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
        """Return the source of each sample of one step, in order."""
        quotas = zip(self.drawn(step), self.drawn(step + 1), strict=True)
        sources = [
            source for source, (before, after) in enumerate(quotas) for _ in range(after - before)
        ]
        random.Random(f"mix-{self.seed}-{step}").shuffle(sources)
        return sources

    def drawn(self, step: int) -> list[int]:
        """Return how many samples of each source come before `step`.

        Each source takes its share of what the sources before it leave over, rounded to the
        nearest. The numbers never decrease from step to step, and add up to `step` global batches.
        """
        left = self.global_batch * step
        counts = []
        for share in self.shares:
            counts.append(math.floor(share * left + Fraction(1, 2)))
            left -= counts[-1]
        return counts


class TokenMixture:
    """Decides which source the next sample comes from, by what its sources have given so far."""

    def __init__(self, weights: Sequence[float], global_batch: int, seed: int) -> None:
        """Keep what the order depends on.

        Args:
            weights: Relative weight of each source, above 0.
            global_batch: Samples per step over all ranks.
            seed: Seed of the order of samples within a step.
        """
        self.weights = [Fraction(weight) for weight in weights]
        self.global_batch, self.seed = global_batch, seed

    def choose(self, drawn: Sequence[int]) -> int:
        """Return the source that is furthest behind its share.

        Args:
            drawn: Tokens that each source has given.
        """
        return min(range(len(drawn)), key=lambda k: (drawn[k] / self.weights[k], k))

    def arrange(self, step: int) -> list[int]:
        """Return the shuffled order of a step's samples, as indices over those drawn."""
        order = list(range(self.global_batch))
        random.Random(f"mix-{self.seed}-{step}").shuffle(order)
        return order


class UnitOrder:
    """The order of one source; in an epoch every sample comes once."""

    def __init__(self, num_units: int, *, seed: int, source: int, window: int) -> None:
        """Keep what the order depends on.

        Args:
            num_units: Units of the source; at least one.
            seed: Seed of every shuffle.
            source: Number of the source.
            window: Units whose samples are shuffled together.
        """
        self.num_units, self.window = num_units, window
        self._name = f"{seed}-{source}"
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def num_windows(self) -> int:
        """Windows per epoch."""
        return math.ceil(self.num_units / self.window)

    def units(self, epoch: int, window: int) -> list[int]:
        """Return the units of a window, in the order in which they are read."""
        return self._units(epoch)[window * self.window : (window + 1) * self.window]

    def arrange(self, epoch: int, window: int, num_samples: int) -> list[int]:
        """Return the shuffled order of a window's samples, as indices over its units in order."""
        order = list(range(num_samples))
        random.Random(f"window-{self._name}-{epoch}-{window}").shuffle(order)
        return order

    def _units(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            order = list(range(self.num_units))
            random.Random(f"order-{self._name}-{epoch}").shuffle(order)
            self._epoch = (epoch, order)
        return self._epoch[1]
