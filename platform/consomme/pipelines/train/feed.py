"""Stream training samples from storage to the ranks.

Ray Data reads the units, and one actor, the `BatchServer`, hands each rank its part of every step.
One actor knows the order of the samples, so all ranks agree on it at any number of ranks, and every
image is read once. A small source stays in the actor's memory after its first epoch; any other is
read again in every epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from consomme.base.errors import DataError
from consomme.execution.rejects import ALLOWED, check_rejects, top_reasons, without_allowed
from consomme.execution.stage import reject_of
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import (
    PreparedSample,
    Preparer,
    SourcePlan,
    UnitContents,
    plan_source,
)
from consomme.storage.model_folder import model_folder
from consomme.storage.plan import Work
from consomme.train.order import Mixture, TokenMixture, UnitOrder
from consomme.train.packing import RowLayout
from consomme.train.stream import BatchStream, SourceStream, StreamPosition, positions_of

CACHE_BYTES = 256 * 2**20
"""A source of at most this size is cached in memory, if its samples are the same in every epoch."""

MAX_TASKS = 2048
"""Most read tasks that are planned at a time; each reads some consecutive units."""

_SCHEMA = pa.schema([pa.field("contents", pa.large_binary(), nullable=False)])


UnitReader = Callable[[Sequence["ReadUnits"], int | None], Iterator[UnitContents]]
"""Maps read tasks, and how many may run at a time (None: the reader decides), to the contents of
their units, in order."""


@dataclass(frozen=True, kw_only=True)
class RankBatch:
    """One rank's part of a step."""

    passes: list[list[list[PreparedSample]]]
    """The micro-batches: rows of each forward pass, and the samples of each row."""

    fillers: list[PreparedSample | None]
    """For each pass that has no row, as every rank has to take part in every pass: a sample that
    another rank has in it; None if no rank has one, so that any image will do."""

    state: dict[str, Any]
    """State from which a `BatchServer` continues with the next step."""


class BatchServer:
    """Hands out the samples of a run, step by step, to all ranks."""

    def __init__(
        self,
        context: TrainContext,
        state: dict[str, Any] | None,
        read_units: UnitReader | None = None,
    ) -> None:
        """List the units; reading begins when the first step is asked for.

        Args:
            context: The run's.
            state: State after the last step that counts; None for the beginning.
            read_units: How units are read; None reads them by Ray Data.

        Raises:
            DataError: A source holds no samples, or no source has a weight.
        """
        self.context, self.recipe, self.folder = context, context.recipe, context.folder
        self.plans = [
            plan_source(source, f"data[{number}]") for number, source in enumerate(self.recipe.data)
        ]
        kind = TokenMixture if self.recipe.shares == "answer_tokens" else Mixture
        mixture = kind(
            [plan.weight for plan in self.plans], self.recipe.global_batch, self.recipe.seed
        )
        positions = positions_of(state) if state else [None] * len(self.plans)
        self._read_units = read_units or read_with_ray
        self.counts = Counter(state["counts"] if state else {})
        self.stream = BatchStream(
            [self._source(number, position) for number, position in enumerate(positions)],
            mixture,
            next_batch=state["next_batch"] if state else 0,
            num_tokens=lambda sample: sample.num_labelled,
            drawn=state.get("drawn") if state else None,
        )
        self._several_refused: str | None = None
        self._pending: dict[int, tuple[list[PreparedSample], dict[str, Any], set[int]]] = {}
        """Samples of each batch that some rank still has to take, state after it, and the ranks
        that took their part."""

    def _source(self, number: int, position: StreamPosition | None) -> SourceStream[PreparedSample]:
        plan = self.plans[number]
        order = UnitOrder(
            len(plan.works),
            seed=self.recipe.seed,
            source=number,
            window=self.recipe.shuffle_units,
        )

        def on_window(epoch: int, window: Sequence[Any]) -> None:
            if epoch == 0:
                self._count(number, window)

        reader = _SourceReader(self.context, plan, number, order, self._read_units)
        return SourceStream(
            order,
            lambda epoch, window: map(self._without_refused, reader(epoch, window)),
            name=f"data[{number}]",
            start=position,
            on_window=on_window,
        )

    def refuse_several_images(self, reason: str) -> None:
        """Reject samples of several images; called before any sample is taken.

        Args:
            reason: Why the model cannot be trained on them.
        """
        self._several_refused = reason

    def _without_refused(self, contents: UnitContents) -> UnitContents:
        reason = self._several_refused
        if reason is None:
            return contents
        rejects = [
            reject_of(one.sample, "conversation_unsupported", reason)
            for one in contents.samples
            if one.num_images > 1
        ]
        return dataclasses.replace(
            contents,
            samples=[one for one in contents.samples if one.num_images <= 1],
            rejects=[*contents.rejects, *rejects],
        )

    def _count(self, number: int, window: Sequence[UnitContents]) -> None:
        """Count samples and rejects of a window in the first epoch, and write its rejects.

        Raises:
            DataError: More samples were rejected than the whole run allows.
        """
        rejects = [reject for contents in window for reject in contents.rejects]
        self.counts["samples"] += sum(len(contents.samples) for contents in window)
        self.counts["rejected"] += len(rejects)
        self.counts.update(f"rejected/{reject.reason}" for reject in rejects)
        allow = self.recipe.data[number].reading.allow
        self.counts.update(f"{ALLOWED}{one.reason}" for one in rejects if one.reason in allow)
        samples = [sample for contents in window for sample in contents.samples]
        if num_shortened := sum(sample.is_shortened for sample in samples):
            self.counts["shortened"] += num_shortened
        for contents in window:
            if contents.rejects:
                lines = [
                    json.dumps(dataclasses.asdict(reject), sort_keys=True) + "\n"
                    for reject in contents.rejects
                ]
                path = f"rejects/{number}-{contents.unit_id}.jsonl"
                self.folder.store.write(path, "".join(lines).encode())
        total = sum(plan.num_rows for plan in self.plans)
        unexpected = without_allowed(self.counts)["rejected"]
        if unexpected > self.recipe.max_reject_fraction * total:
            raise DataError(
                f"{self.folder.url}: {unexpected:,} of {total:,} samples were rejected"
                f" so far ({top_reasons(self.counts)}), more than max_reject_fraction="
                f"{self.recipe.max_reject_fraction}; see rejects/, fix the data or raise the limit"
            )

    def first_samples(self, num_samples: int) -> list[PreparedSample]:
        """Return the next samples of the stream without consuming them."""
        samples: list[PreparedSample] = []
        for batch in itertools.count(self.stream.next_batch - len(self._pending)):
            samples += self._batch(batch)[0]
            if len(samples) >= num_samples:
                return samples[:num_samples]
        raise AssertionError("the stream is endless")

    def take(self, batch: int, rank: int, world: int, layout: RowLayout) -> RankBatch:
        """Return one rank's part of a batch; every rank takes every batch once, in order.

        Args:
            batch: Number of the batch.
            rank: The rank.
            world: Number of ranks.
            layout: How samples become rows; the same for all ranks.

        Raises:
            DataError: Too many samples were rejected, or none can be trained on.
        """
        samples, state, taken = self._batch(batch)
        taken.add(rank)
        if len(taken) == world:
            del self._pending[batch]
        ranks = layout.split(
            [sample.num_tokens for sample in samples],
            world,
            [sample.num_images for sample in samples],
        )
        fillers = [
            # A sample is sent only where it is needed.
            None if every[rank] else next((samples[k] for rows in every for (k, *_) in rows), None)
            for every in zip(*ranks, strict=True)
        ]
        return RankBatch(
            passes=[[[samples[k] for k in row] for row in rows] for rows in ranks[rank]],
            fillers=fillers,
            state=state,
        )

    def _batch(self, batch: int) -> tuple[list[PreparedSample], dict[str, Any], set[int]]:
        while batch not in self._pending:
            if batch < self.stream.next_batch:
                raise ValueError(f"batch {batch} was taken by all ranks before")
            number = self.stream.next_batch
            samples = self.stream.take()
            state = self.stream.state() | {"counts": dict(self.counts)}
            self._pending[number] = (samples, state, set())
        return self._pending[batch]

    def check(self) -> dict[str, int]:
        """Return the counts of samples and of rejects by reason.

        Raises:
            DataError: Too many samples were rejected.
        """
        num_shards = len({work.unit.shard for plan in self.plans for work in plan.works})
        check_rejects(
            without_allowed(self.counts),
            self.recipe.max_reject_fraction,
            self.folder.url,
            num_shards=num_shards,
        )
        drawn = {
            f"answer_tokens/data[{number}]": count
            for number, count in enumerate(self.stream.drawn)
            if self.recipe.shares == "answer_tokens"
        }
        return dict(self.counts) | drawn


class _SourceReader:
    """Reads the units of one source from any window on; caches a small source."""

    def __init__(
        self,
        context: TrainContext,
        plan: SourcePlan,
        number: int,
        order: UnitOrder,
        read_units: UnitReader,
    ) -> None:
        self.context, self.plan, self.number = context, plan, number
        self.order, self._read_units = order, read_units
        varies = context.recipe.max_upscale != 1 or plan.source.shuffle_turns
        self._is_cached = not varies and plan.num_bytes <= CACHE_BYTES
        self._cache: dict[int, UnitContents] = {}

    def __call__(self, epoch: int, window: int) -> Iterator[UnitContents]:
        """Yield the contents of all units from this window on, epoch after epoch."""
        for number in itertools.count(epoch):
            first = window if number == epoch else 0
            units = [
                unit
                for k in range(first, self.order.num_windows)
                for unit in self.order.units(number, k)
            ]
            missing = [unit for unit in units if unit not in self._cache]
            contents_read = self._read(missing, number) if missing else iter(())
            for unit in units:
                contents = self._cache[unit] if unit in self._cache else next(contents_read)
                if self._is_cached:
                    self._cache[unit] = contents
                yield contents

    def _read(self, units: Sequence[int], epoch: int) -> Iterator[UnitContents]:
        """Read units, several consecutive ones per task, and yield their contents in order."""
        per_task = max(1, len(units) // MAX_TASKS)
        slices = [units[at : at + per_task] for at in range(0, len(units), per_task)]
        recipe = self.context.recipe
        tasks = [
            ReadUnits(
                recipe=recipe,
                start=self.context.start,
                number=self.number,
                epoch=epoch,
                works=tuple(self.plan.works[unit] for unit in some),
            )
            for some in slices
        ]
        return self._read_units(tasks, recipe.num_readers)


@dataclass(frozen=True, kw_only=True)
class ReadUnits:
    """A task that reads some units in any process."""

    recipe: TrainRecipe
    start: str
    """Model whose chat template, tokenizer and image processor samples are checked with."""

    number: int
    """Of the source."""

    epoch: int
    works: tuple[Work, ...]

    def __call__(self) -> Iterator[UnitContents]:
        """Yield the contents of each unit."""
        preparer = Preparer(self.recipe, *_chat_encoder(self.start, *self.recipe.template.items()))
        source = self.recipe.data[self.number]
        for work in self.works:
            yield preparer.read(source, work, self.number, self.epoch)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the contents of each unit as a table for Ray Data."""
        for contents in self():
            yield pa.Table.from_pylist([{"contents": pickle.dumps(contents)}], schema=_SCHEMA)


@functools.cache
def _chat_encoder(start: str, *template: tuple[str, Any]) -> tuple[Any, int]:
    """Open a model's `ChatEncoder`, once per process; also returns how many positions it has."""
    from consomme.models.attention import max_positions
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import open_processor

    config, processor = open_processor(model_folder(start, has_weights=False))
    chat = chat_encoder_for(config, processor, dict(template))
    return chat, max_positions(config)


def read_with_ray(tasks: Sequence[ReadUnits], num_readers: int | None) -> Iterator[UnitContents]:
    """Read units by Ray Data, as far ahead as it has memory, and yield their contents in order."""
    import ray.data

    from consomme.execution.datasource import UnitReadTask, UnitSource, unit_context, where_cpus_are
    from consomme.execution.session import num_cpus

    unit_context().execution_options.preserve_order = True
    blocks = ray.data.read_datasource(
        UnitSource("TrainUnits", [UnitReadTask(task.tables, len(task.works)) for task in tasks]),
        override_num_blocks=len(tasks),
        concurrency=num_readers or max(1, num_cpus() // 4),
        # Training may hold every CPU; on a cluster readers run on all nodes.
        ray_remote_args={"num_cpus": 0, "scheduling_strategy": "SPREAD", **where_cpus_are()},
    )
    for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow"):
        for packed_contents in table["contents"]:
            contents: UnitContents = pickle.loads(packed_contents.as_buffer())
            yield contents
