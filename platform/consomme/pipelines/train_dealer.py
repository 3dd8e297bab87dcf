"""One rank's hand in the data: it asks the feed for its samples and makes batches of them.

One decision is made here: the samples of the next step are on their way while this one is worked
on. On a GPU its batches are made meanwhile as well, by a thread; on a CPU a thread would only take
the interpreter from the one that computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from consomme.pipelines.failures import own_errors
from consomme.pipelines.train import TrainRecipe
from consomme.pipelines.train_data import Prepared, encode
from consomme.pipelines.train_feed import Share, TrainFeed


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Makes batches for one model."""

    batcher: Any
    """Its `Batcher`."""

    dialogue: Any
    is_packed: bool
    """Whether samples share rows."""

    def join(self, samples: Sequence[Prepared]) -> dict[str, Any]:
        """Give each sample a row."""
        inputs: dict[str, Any] = self.batcher.join([self._encode(sample) for sample in samples])
        return inputs

    def of(self, share: Share) -> list[dict[str, Any]]:
        """Make the batches of a step."""
        return [self._pass(rows) if rows else self._silent(share.filler) for rows in share.passes]

    def _pass(self, rows: Sequence[Sequence[Prepared]]) -> dict[str, Any]:
        if not self.is_packed:
            return self.join([sample for row in rows for sample in row])
        (row,) = rows
        inputs: dict[str, Any] = self.batcher.pack([self._encode(sample) for sample in row])
        return inputs

    def _silent(self, filler: Prepared) -> dict[str, Any]:
        """A batch that says nothing."""
        from consomme.models.batches import IGNORE_INDEX

        batch = self._pass([[filler]])
        batch["labels"].fill_(IGNORE_INDEX)
        return batch

    def _encode(self, sample: Prepared) -> Any:
        return encode(self.dialogue, sample)


class Dealer:
    """Asks for one rank's samples."""

    def __init__(
        self, config: dict[str, Any], state: dict[str, Any] | None, rank: int, world: int
    ) -> None:
        """Start the feed, on rank 0, or get to know it; every rank has to.

        Args:
            config: Of the run.
            state: Where the data stands; None for the beginning.
            rank: Which one.
            world: How many.
        """
        import ray
        import ray.train.collective

        recipe: TrainRecipe = config["recipe"]
        self.rank, self.world, self.num_steps = rank, world, recipe.num_steps
        feed = None
        if rank == 0:
            feed = (
                ray.remote(TrainFeed)
                .options(num_cpus=0, max_restarts=0)
                .remote(recipe, config["start"], config["folder"], state)
            )
        self.feed = ray.train.collective.broadcast_from_rank_zero(feed)
        self.next_batch = state["next_batch"] if state else 0

    def peek(self, num_samples: int) -> list[Prepared]:
        """Return the first samples of the run."""
        samples: list[Prepared] = self._get(self.feed.peek.remote(num_samples))
        return samples

    def batches(
        self, tables: Tables, device: Any, start: int
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Yield each step's batches, and where the data stands after it.

        Args:
            tables: Makes batches.
            device: Where they are wanted.
            start: Steps done.
        """
        shares = self._shares(start)
        if device.type == "cpu":
            yield from ((tables.of(share), share.state) for share in shares)
            return

        def make() -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
            share = next(shares, None)
            if share is None:
                return None
            made = [
                {name: value.pin_memory() for name, value in one.items()}
                for one in tables.of(share)
            ]
            return made, share.state

        with ThreadPoolExecutor(1, "batches") as pool:
            coming = pool.submit(make)
            while (made := coming.result()) is not None:
                coming = pool.submit(make)
                yield (
                    [
                        {k: v.to(device, non_blocking=True) for k, v in one.items()}
                        for one in made[0]
                    ],
                    made[1],
                )

    def _shares(self, start: int) -> Iterator[Share]:
        last = self.next_batch + self.num_steps - start
        asked = None
        for batch in range(self.next_batch, last):
            share = asked or self._take(batch)
            asked = self._take(batch + 1) if batch + 1 < last else None
            yield self._get(share)

    def _take(self, batch: int) -> Any:
        return self.feed.take.remote(batch, self.rank, self.world)

    def check(self) -> dict[str, int]:
        """Return what was seen of the data; raises if too much was rejected."""
        counts: dict[str, int] = self._get(self.feed.check.remote())
        return counts

    def _get(self, reference: Any) -> Any:
        import ray

        with own_errors():
            return ray.get(reference)
