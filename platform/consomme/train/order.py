"""The order in which samples are trained on: a function of seed and step, for any number of ranks.

One decision is made here: step k's global batch is cut out of a stream of seeded permutations, so a
resumed run sees what an undisturbed one would, and the ranks share the batch without overlap.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from consomme.base.errors import DataError


class BatchOrder:
    """Indices of the samples of each step."""

    def __init__(self, weights: Sequence[tuple[int, float]], global_batch: int, seed: int) -> None:
        """Prepare the order.

        Args:
            weights: (number of samples, relative weight) of each source; indices run through the
                sources one after the other.
            global_batch: Samples per step over all ranks.
            seed: Of every permutation.

        Raises:
            DataError: A source has a weight but no samples, or none has a weight.
        """
        empty = [source for source, (size, weight) in enumerate(weights) if weight and not size]
        if empty:
            raise DataError(f"data sources {empty} have no usable samples; look into their rejects")
        left = sum(Fraction(weight) for _, weight in weights)
        if left <= 0:
            raise DataError("no data source has a weight above 0, so there is nothing to train on")
        self.sizes = [size for size, _ in weights]
        self.shares: list[Fraction] = []
        """Share of each source in what the sources before it leave over; exact."""
        for _, weight in weights:
            self.shares.append(Fraction(weight) / left if left else Fraction(0))
            left -= Fraction(weight)
        self.starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.global_batch, self.seed = global_batch, seed
        self._permutations: dict[tuple[int, int], list[int]] = {}

    def step(self, step: int) -> list[int]:
        """Indices of the global batch of one step, in order."""
        found = []
        quotas = zip(self.sizes, self._quotas(step), self._quotas(step + 1), strict=True)
        for source, (size, before, after) in enumerate(quotas):
            for position in range(before, after):
                epoch, place = divmod(position, size)
                found.append(self.starts[source] + self._permutation(source, epoch)[place])
        random.Random(f"mix-{self.seed}-{step}").shuffle(found)
        return found

    def rank(self, step: int, rank: int, world_size: int) -> list[int]:
        """The part of a step's batch that one rank works on."""
        return self.step(step)[rank::world_size]

    def _quotas(self, step: int) -> list[int]:
        """Samples drawn from each source before `step`; never falls, and adds up to the batches.

        Each source takes its share of what those before it left, rounded to the nearest.
        """
        left = self.global_batch * step
        taken = []
        for share in self.shares:
            taken.append(math.floor(share * left + Fraction(1, 2)))
            left -= taken[-1]
        return taken

    def _permutation(self, source: int, epoch: int) -> list[int]:
        key = (source, epoch)
        if key not in self._permutations:
            if len(self._permutations) > 2 * len(self.sizes):
                self._permutations.clear()
            order = list(range(self.sizes[source]))
            random.Random(f"order-{self.seed}-{source}-{epoch}").shuffle(order)
            self._permutations[key] = order
        return self._permutations[key]
