"""One rank's data loader: gets the samples of each step from the `BatchServer` and collates them.

The samples of the next step are requested while the current step is computed. On a GPU, a thread
collates its batches meanwhile as well; on a CPU such a thread would only compete with the training
for the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consomme.execution.errors import own_errors
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.feed import BatchServer, RankBatch
from consomme.pipelines.train.samples import PreparedSample, encode
from consomme.train.packing import RowLayout

if TYPE_CHECKING:
    from consomme.train.filler import Filler

StepBatches = tuple[list[dict[str, Any]], dict[str, Any]]
"""The micro-batches of a step, and the state of the data after it."""


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes batches of tensors for one model."""

    batcher: Any
    """The model's `Batcher`."""

    chat: Any
    """The model's `ChatEncoder`."""

    layout: RowLayout
    """How samples become rows."""

    filler: Filler | None = None
    """Image for passes without one; None adds none."""

    def collate(
        self, samples: Sequence[PreparedSample], *, has_filler: bool = False
    ) -> dict[str, Any]:
        """Collate samples, one per row, padded to the longest.

        Args:
            samples: The samples.
            has_filler: Whether to add the filler's image; no sample has one.
        """
        rows = [self._encode(sample) for sample in samples]
        if has_filler and self.filler is not None:
            rows = self.filler.added_to(rows)
        inputs: dict[str, Any] = self.batcher.collate(rows)
        return inputs

    def micro_batches(self, batch: RankBatch) -> list[dict[str, Any]]:
        """Collate one rank's part of a step."""
        passes = [[sample for row in rows for sample in row] for rows in batch.passes]
        has_image = [
            any(one.num_images for one in samples)
            if samples
            else filler is None or filler.num_images > 0
            for samples, filler in zip(passes, batch.fillers, strict=True)
        ]
        filled = self.filler.passes(has_image) if self.filler is not None else set()
        return [
            self._micro_batch(samples, has_filler=number in filled)
            if samples
            else self._unlabelled(batch.fillers[number], has_filler=number in filled)
            for number, samples in enumerate(passes)
        ]

    def _micro_batch(
        self, samples: Sequence[PreparedSample], *, has_filler: bool
    ) -> dict[str, Any]:
        first = samples[0]
        if self.layout.pack_tokens is None or self.layout.is_alone(
            first.num_tokens, first.num_images
        ):
            return self.collate(samples, has_filler=has_filler)
        rows = [self._encode(sample) for sample in samples]
        if has_filler and self.filler is not None:
            rows.append(self.filler.row)
        inputs: dict[str, Any] = self.batcher.pack(rows)
        return inputs

    def _unlabelled(self, sample: PreparedSample | None, *, has_filler: bool) -> dict[str, Any]:
        """Collate a micro-batch without labels: it adds nothing to loss and gradients."""
        from consomme.models.batches import IGNORE_INDEX

        if sample is None:
            assert self.filler is not None
            batch: dict[str, Any] = self.batcher.collate([self.filler.row])
        else:
            batch = self._micro_batch([sample], has_filler=has_filler)
        batch["labels"].fill_(IGNORE_INDEX)
        return batch

    def _encode(self, sample: PreparedSample) -> Any:
        return encode(self.chat, sample)


class RankDataLoader:
    """Loads one rank's batches, step by step."""

    def __init__(
        self, context: TrainContext, state: dict[str, Any] | None, rank: int, world: int
    ) -> None:
        """Start the `BatchServer` on rank 0, and send its handle to all ranks; all have to call.

        Args:
            context: The run's.
            state: Position in the data; None for the beginning.
            rank: This rank.
            world: Number of ranks.
        """
        import ray
        import ray.train.collective

        self.rank, self.world = rank, world
        server = None
        if rank == 0:
            actor = ray.remote(BatchServer).options(num_cpus=0, max_restarts=0)
            server = actor.remote(context, state)
        self._server = ray.train.collective.broadcast_from_rank_zero(server)
        self._next_batch = self._end = state["next_batch"] if state else 0
        self._steps: Iterator[StepBatches] = iter(())
        self._layout: RowLayout | None = None

    def refuse_several_images(self, reason: str) -> None:
        """Reject samples of several images; every rank calls this before it takes any sample.

        Args:
            reason: Why the model cannot be trained on them.
        """
        self._get(self._server.refuse_several_images.remote(reason))

    def first_samples(self, num_samples: int) -> list[PreparedSample]:
        """Return the first samples of the run without consuming them."""
        samples: list[PreparedSample] = self._get(self._server.first_samples.remote(num_samples))
        return samples

    def start(self, collator: Collator, device: Any, num_steps: int) -> None:
        """Begin to prefetch.

        Args:
            collator: Makes the batches.
            device: Where they are sent.
            num_steps: Steps that will be asked for; no more samples are drawn from the data.
        """
        self._end += num_steps
        self._layout = collator.layout
        if device.type == "cpu":
            self._steps = (
                (collator.micro_batches(batch), batch.state) for batch in self._rank_batches()
            )
        else:
            self._steps = self._collate_ahead(collator, device)

    def add_steps(self, num_steps: int) -> None:
        """Allow for more steps than `start` was told of."""
        self._end += num_steps

    def next(self) -> StepBatches:
        """Return the micro-batches of the next step, and the state of the data after it."""
        return next(self._steps)

    def _collate_ahead(self, collator: Collator, device: Any) -> Iterator[StepBatches]:
        """Collate in a thread, one step ahead, and send the batches to the device."""
        from consomme.models.batches import map_tensors

        rank_batches = self._rank_batches()

        def collate() -> StepBatches:
            batch = next(rank_batches)
            pinned = [
                map_tensors(one, lambda value: value.pin_memory())
                for one in collator.micro_batches(batch)
            ]
            return pinned, batch.state

        with ThreadPoolExecutor(1, "batches") as pool:
            pending = None
            while True:
                pinned, state = (pending or pool.submit(collate)).result()
                pending = pool.submit(collate) if self._next_batch < self._end else None
                yield (
                    [
                        map_tensors(one, lambda value: value.to(device, non_blocking=True))
                        for one in pinned
                    ],
                    state,
                )

    def _rank_batches(self) -> Iterator[RankBatch]:
        pending = None
        while True:
            current = pending or self._request()
            pending = self._request() if self._next_batch < self._end else None
            yield self._get(current)

    def _request(self) -> Any:
        self._next_batch += 1
        batch = self._next_batch - 1
        return self._server.take.remote(batch, self.rank, self.world, self._layout)

    def check(self) -> dict[str, int]:
        """Return the counts of samples and rejects; raises if too many were rejected."""
        counts: dict[str, int] = self._get(self._server.check.remote())
        return counts

    def _get(self, reference: Any) -> Any:
        import ray

        with own_errors():
            return ray.get(reference)
