"""Stream training samples from storage to the ranks: Ray Data reads, one actor deals.

Two decisions are made here. One actor knows the order and deals each step's samples out, so all
ranks agree on them however many they are, and each picture is read once. And a source that is small
stays in the actor's memory after its first epoch; any other is read again in each.
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
from consomme.execution.rejects import check_rejects, top_reasons
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import (
    PreparedSample,
    Preparer,
    SourcePlan,
    UnitContents,
    plan_source,
)
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.plan import Work
from consomme.train.order import Mixture, UnitOrder
from consomme.train.packing import packed, padded
from consomme.train.stream import BatchStream, SourceStream, places

KEPT_BYTES = 256 * 2**20
"""A source of no more bytes is kept in memory, if nothing in it varies from epoch to epoch."""

TASKS = 2048
"""Most reading tasks planned at a time; each reads some units that follow each other."""

_SCHEMA = pa.schema([pa.field("contents", pa.large_binary(), nullable=False)])


Through = Callable[[Sequence["ReadUnits"], int | None], Iterator[UnitContents]]
"""Reads, and how many at a time, if that is settled, -> what is in the units, in order."""


@dataclass(frozen=True, kw_only=True)
class RankBatch:
    """One rank's part of a step."""

    passes: list[list[list[PreparedSample]]]
    """Rows of each pass through the model, and the samples of each row."""

    filler: PreparedSample
    """For passes without a row: every rank has to take part in every pass."""

    state: dict[str, Any]
    """What goes on with the next step: for `BatchServer`."""


class BatchServer:
    """Deals out the steps of a run, in order."""

    def __init__(
        self,
        recipe: TrainRecipe,
        start: str,
        folder: str,
        state: dict[str, Any] | None,
        through: Through | None = None,
    ) -> None:
        """List the units; reading begins with the first step that is asked for.

        Args:
            recipe: The run's, with absolute paths.
            start: Folder of the model that samples are made ready for.
            folder: The run folder.
            state: Of the last step that counts; None for the beginning.
            through: How units are read; None takes Ray Data.

        Raises:
            DataError: A source holds no samples, or none has a weight.
        """
        self.recipe, self.start, self.folder = recipe, start, RunFolder.at(folder)
        self.plans = [
            plan_source(source, f"data[{number}]") for number, source in enumerate(recipe.data)
        ]
        mixture = Mixture([plan.weight for plan in self.plans], recipe.global_batch, recipe.seed)
        at = places(state) if state else [None] * len(self.plans)
        self._through = through or through_ray
        self.counts = Counter(state["counts"] if state else {})
        self.stream = BatchStream(
            [self._source(number, place) for number, place in enumerate(at)],
            mixture,
            next_batch=state["next_batch"] if state else 0,
        )
        self._made: dict[int, tuple[list[PreparedSample], dict[str, Any], set[int]]] = {}

    def _source(self, number: int, place: Any) -> SourceStream[PreparedSample]:
        plan = self.plans[number]
        order = UnitOrder(
            len(plan.works),
            seed=self.recipe.seed,
            source=number,
            window=self.recipe.shuffle_units,
        )

        def entered(epoch: int, window: Sequence[Any]) -> None:
            if epoch == 0:
                self._count(number, window)

        return SourceStream(
            order,
            _Units(self.recipe, self.start, plan, number, order, self._through),
            name=f"data[{number}]",
            start=place,
            entered=entered,
        )

    def _count(self, number: int, window: Sequence[UnitContents]) -> None:
        """Write down what was rejected the first time a window is seen.

        Raises:
            DataError: More was rejected than may be, whatever comes.
        """
        rejects = [reject for contents in window for reject in contents.rejects]
        self.counts["samples"] += sum(len(contents.samples) for contents in window)
        self.counts["rejected"] += len(rejects)
        self.counts.update(f"rejected/{reject.reason}" for reject in rejects)
        for contents in window:
            if contents.rejects:
                lines = [
                    json.dumps(dataclasses.asdict(reject), sort_keys=True) + "\n"
                    for reject in contents.rejects
                ]
                path = f"rejects/{number}-{contents.unit_id}.jsonl"
                self.folder.store.write(path, "".join(lines).encode())
        total = sum(plan.num_rows for plan in self.plans)
        if self.counts["rejected"] > self.recipe.max_reject_fraction * total:
            raise DataError(
                f"{self.folder.url}: {self.counts['rejected']:,} of {total:,} samples were rejected"
                f" so far ({top_reasons(self.counts)}), more than max_reject_fraction="
                f"{self.recipe.max_reject_fraction}; look into rejects/, mend the data or raise the"
                " limit"
            )

    def peek(self, num_samples: int) -> list[PreparedSample]:
        """Return the first samples that will be dealt out, without dealing them."""
        found: list[PreparedSample] = []
        for batch in itertools.count(self.stream.next_batch - len(self._made)):
            found += self._batch(batch)[0]
            if len(found) >= num_samples:
                return found[:num_samples]
        raise AssertionError("the stream is endless")

    def take(self, batch: int, rank: int, world: int) -> RankBatch:
        """Return one rank's part of a batch; every rank asks for every batch, in order.

        Raises:
            DataError: Too many samples were rejected, or there is none.
        """
        samples, state, taken = self._batch(batch)
        taken.add(rank)
        if len(taken) == world:
            del self._made[batch]
        if self.recipe.pack_tokens is None:
            shares = padded(len(samples), world, self.recipe.micro_batch)
        else:
            lengths = [sample.num_tokens for sample in samples]
            shares = packed(lengths, world, self.recipe.pack_tokens)
        return RankBatch(
            passes=[[[samples[k] for k in row] for row in rows] for rows in shares[rank]],
            filler=samples[0],
            state=state,
        )

    def _batch(self, batch: int) -> tuple[list[PreparedSample], dict[str, Any], set[int]]:
        while batch not in self._made:
            if batch < self.stream.next_batch:
                raise ValueError(f"batch {batch} was dealt out before")
            number = self.stream.next_batch
            samples = self.stream.take()
            state = self.stream.state() | {"counts": dict(self.counts)}
            self._made[number] = (samples, state, set())
        return self._made[batch]

    def check(self) -> dict[str, int]:
        """Return what was seen: samples and rejects, by reason.

        Raises:
            DataError: Too many of them were rejected.
        """
        check_rejects(self.counts, self.recipe.max_reject_fraction, self.folder.url)
        return dict(self.counts)


class _Units:
    """Opens a source's units at any window."""

    def __init__(
        self,
        recipe: TrainRecipe,
        start: str,
        plan: SourcePlan,
        number: int,
        order: UnitOrder,
        through: Through,
    ) -> None:
        self.recipe, self.start, self.plan, self.number = recipe, start, plan, number
        self.order, self.through = order, through
        varies = recipe.max_upscale != 1 or plan.source.shuffle_turns
        self._keeps = not varies and plan.num_bytes <= KEPT_BYTES
        self._kept: dict[int, UnitContents] = {}

    def __call__(self, epoch: int, window: int) -> Iterator[UnitContents]:
        """Yield the contents of all units from there on."""
        for number in itertools.count(epoch):
            first = window if number == epoch else 0
            units = [
                unit
                for k in range(first, self.order.num_windows)
                for unit in self.order.units(number, k)
            ]
            missing = [unit for unit in units if unit not in self._kept]
            coming = self._read(missing, number) if missing else iter(())
            for unit in units:
                contents = self._kept[unit] if unit in self._kept else next(coming)
                if self._keeps:
                    self._kept[unit] = contents
                yield contents

    def _read(self, units: Sequence[int], epoch: int) -> Iterator[UnitContents]:
        """Read units, some to a task, and yield them in order."""
        per_task = max(1, len(units) // TASKS)
        slices = [units[at : at + per_task] for at in range(0, len(units), per_task)]
        reads = [
            ReadUnits(
                recipe=self.recipe,
                start=self.start,
                number=self.number,
                epoch=epoch,
                works=tuple(self.plan.works[unit] for unit in some),
            )
            for some in slices
        ]
        return self.through(reads, self.recipe.num_readers)


@dataclass(frozen=True, kw_only=True)
class ReadUnits:
    """Reads some units, wherever it is called."""

    recipe: TrainRecipe
    start: str
    number: int
    epoch: int
    works: tuple[Work, ...]

    def __call__(self) -> Iterator[UnitContents]:
        """Yield what is in each."""
        preparer = Preparer(self.recipe, *_chat_encoder(self.start))
        source = self.recipe.data[self.number]
        for work in self.works:
            yield preparer.read(source, work, self.number, self.epoch)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the same as Ray Data carries it."""
        for contents in self():
            yield pa.Table.from_pylist([{"contents": pickle.dumps(contents)}], schema=_SCHEMA)


@functools.cache
def _chat_encoder(start: str) -> tuple[Any, int]:
    """Open how to talk to a model, once per process, and how many positions it has."""
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import open_talk

    config, processor = open_talk(model_folder(start))
    return chat_encoder_for(config, processor), config.get_text_config().max_position_embeddings


def through_ray(reads: Sequence[ReadUnits], num_readers: int | None) -> Iterator[UnitContents]:
    """Read by Ray Data, as far ahead as it has room, and yield the contents in order."""
    import ray.data

    from consomme.execution.datasource import UnitReadTask, UnitSource, unit_context, where_cpus_are
    from consomme.execution.session import num_cpus

    # Blocks leave in the order of the units.
    unit_context().execution_options.preserve_order = True
    blocks = ray.data.read_datasource(
        UnitSource("TrainUnits", [UnitReadTask(read.tables, len(read.works)) for read in reads]),
        override_num_blocks=len(reads),
        concurrency=num_readers or max(1, num_cpus() // 4),
        # Training may hold every CPU there is; on a cluster readers go to all nodes.
        ray_remote_args={"num_cpus": 0, "scheduling_strategy": "SPREAD", **where_cpus_are()},
    )
    for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow"):
        for one in table["contents"]:
            contents: UnitContents = pickle.loads(one.as_buffer())
            yield contents
