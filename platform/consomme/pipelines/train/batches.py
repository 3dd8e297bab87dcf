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

from consomme.execution.errors import own_errors
from consomme.pipelines.train.feed import BatchServer, RankBatch
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import PreparedSample, encode


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes batches for one model."""

    batcher: Any
    """Its `Batcher`."""

    chat: Any
    is_packed: bool
    """Whether samples share rows."""

    def join(self, samples: Sequence[PreparedSample]) -> dict[str, Any]:
        """Give each sample a row."""
        inputs: dict[str, Any] = self.batcher.join([self._encode(sample) for sample in samples])
        return inputs

    def of(self, share: RankBatch) -> list[dict[str, Any]]:
        """Make the batches of a step."""
        return [self._pass(rows) if rows else self._silent(share.filler) for rows in share.passes]

    def _pass(self, rows: Sequence[Sequence[PreparedSample]]) -> dict[str, Any]:
        if not self.is_packed:
            return self.join([sample for row in rows for sample in row])
        (row,) = rows
        inputs: dict[str, Any] = self.batcher.pack([self._encode(sample) for sample in row])
        return inputs

    def _silent(self, filler: PreparedSample) -> dict[str, Any]:
        """A batch that says nothing."""
        from consomme.models.batches import IGNORE_INDEX

        batch = self._pass([[filler]])
        batch["labels"].fill_(IGNORE_INDEX)
        return batch

    def _encode(self, sample: PreparedSample) -> Any:
        return encode(self.chat, sample)


class RankDataLoader:
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
        self.rank, self.world = rank, world
        feed = None
        if rank == 0:
            actor = ray.remote(BatchServer).options(num_cpus=0, max_restarts=0)
            feed = actor.remote(recipe, config["start"], config["folder"], state)
        self.feed = ray.train.collective.broadcast_from_rank_zero(feed)
        self._next = self._last = state["next_batch"] if state else 0
        self._made: Iterator[tuple[list[dict[str, Any]], dict[str, Any]]] = iter(())

    def peek(self, num_samples: int) -> list[PreparedSample]:
        """Return the first samples of the run."""
        samples: list[PreparedSample] = self._get(self.feed.peek.remote(num_samples))
        return samples

    def deal(self, tables: Collator, device: Any, num_steps: int) -> None:
        """Begin to ask for steps.

        Args:
            tables: Makes batches.
            device: Where they are wanted.
            num_steps: How many will be asked for; more are not drawn from the data.
        """
        self._last += num_steps
        if device.type == "cpu":
            self._made = ((tables.of(share), share.state) for share in self._shares())
        else:
            self._made = self._ahead(tables, device)

    def extend(self, num_steps: int) -> None:
        """Ask for more steps than was thought."""
        self._last += num_steps

    def next(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return a step's batches, and where the data stands after it."""
        return next(self._made)

    def _ahead(
        self, tables: Collator, device: Any
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Make batches in a thread, one step ahead, and send them to the device."""
        shares = self._shares()

        def make() -> tuple[list[dict[str, Any]], dict[str, Any]]:
            share = next(shares)
            made = [{k: v.pin_memory() for k, v in one.items()} for one in tables.of(share)]
            return made, share.state

        with ThreadPoolExecutor(1, "batches") as pool:
            coming = None
            while True:
                made, state = (coming or pool.submit(make)).result()
                coming = pool.submit(make) if self._next < self._last else None
                yield (
                    [{k: v.to(device, non_blocking=True) for k, v in one.items()} for one in made],
                    state,
                )

    def _shares(self) -> Iterator[RankBatch]:
        asked = None
        while True:
            share = asked or self._take()
            asked = self._take() if self._next < self._last else None
            yield self._get(share)

    def _take(self) -> Any:
        self._next += 1
        return self.feed.take.remote(self._next - 1, self.rank, self.world)

    def check(self) -> dict[str, int]:
        """Return what was seen of the data; raises if too much was rejected."""
        counts: dict[str, int] = self._get(self.feed.check.remote())
        return counts

    def _get(self, reference: Any) -> Any:
        import ray

        with own_errors():
            return ray.get(reference)
