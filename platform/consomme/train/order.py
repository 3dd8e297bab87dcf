"""The order in which samples are trained on: a function of seed and step, for any number of ranks.

One decision is made here: step k's global batch is cut out of a stream of seeded permutations, so a resumed run
sees what an undisturbed one would, and the ranks share the batch without overlap.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


class BatchOrder:
    """Indices of the samples of each step."""

    def __init__(self, weights: Sequence[tuple[int, float]], global_batch: int, seed: int) -> None:
        """Prepare the order.

        Args:
            weights: (number of samples, relative weight) of each source; indices run through the
                sources one after the other.
            global_batch: Samples per step over all ranks.
            seed: Of every permutation.
        """
        self.sizes = [size for size, _ in weights]
        total = sum(weight for _, weight in weights)
        self.shares = [weight / total for _, weight in weights]
        self.starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.global_batch, self.seed = global_batch, seed
        self._permutations: dict[tuple[int, int], list[int]] = {}

    def step(self, step: int) -> list[int]:
        """Indices of the global batch of one step, in order."""
        found = []
        for source, size in enumerate(self.sizes):
            before, after = self._quota(source, step), self._quota(source, step + 1)
            for position in range(before, after):
                epoch, place = divmod(position, size)
                found.append(self.starts[source] + self._permutation(source, epoch)[place])
        random.Random(f"mix-{self.seed}-{step}").shuffle(found)
        return found

    def rank(self, step: int, rank: int, world_size: int) -> list[int]:
        """The part of a step's batch that one rank works on."""
        return self.step(step)[rank::world_size]

    def _quota(self, source: int, step: int) -> int:
        """Samples drawn from the first `source + 1` sources before `step`, less those of earlier ones."""

        def upto(count: int) -> int:
            return round(sum(self.shares[:count]) * self.global_batch * step)

        return upto(source + 1) - upto(source)

    def _permutation(self, source: int, epoch: int) -> list[int]:
        key = (source, epoch)
        if key not in self._permutations:
            if len(self._permutations) > 2 * len(self.sizes):
                self._permutations.clear()
            order = list(range(self.sizes[source]))
            random.Random(f"order-{self.seed}-{source}-{epoch}").shuffle(order)
            self._permutations[key] = order
        return self._permutations[key]
