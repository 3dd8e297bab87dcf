"""Measure the lengths of the samples of a train recipe, which memory and time depend on.

Lengths are those of the first samples of each source; nothing more of the data is read. Of images,
the headers are: a grey one of the same size takes as many tokens and has as many pixel values.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.sample import Reject
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import PreparedSample, Preparer, encode, plan_source
from consomme.storage.captions import unit_reader
from consomme.storage.shards import shard_urls
from consomme.vision.decode import upright_size

NUM_MEASURED = 32
"""Samples of each source whose lengths are measured."""

NOMINAL_TOKENS = 512
"""Length that time is planned for if no sample could be measured."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of samples, and how they are split into forward passes."""

    mean: Any
    """Mean `SampleShape`."""

    in_pass: Any | None
    """`SampleShape` of the longest rows of a forward pass; None if no sample could be measured."""

    num_rows: int
    """Rows per pass."""

    num_passes: int
    """Passes of one rank per step."""


def lengths_of(recipe: TrainRecipe, start: str, notes: list[str], *, can_pack: bool) -> Lengths:
    """Measure the first samples of each source.

    Args:
        recipe: The run's.
        start: The model that training starts from.
        notes: What was found is added.
        can_pack: Whether the model takes rows of several samples.
    """
    from consomme.models.attention import max_positions
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import open_processor
    from consomme.train.cost import SampleShape

    config, processor = open_processor(start)
    chat = chat_encoder_for(config, processor, recipe.template)
    limit = max_positions(config)
    preparer = Preparer(recipe, chat, limit, decodes=False)
    by_source = [_first(preparer, source, number) for number, source in enumerate(recipe.data)]
    samples = [one for found in by_source for one in found]
    mine = math.ceil(recipe.global_batch / recipe.num_workers)
    passes = math.ceil(mine / recipe.micro_batch)
    rows = math.ceil(mine / passes)
    if not samples:
        notes.append(
            "none of the first samples can be trained on: activations are unknown, and time is"
            f" for {NOMINAL_TOKENS} tokens without an image"
        )
        nominal = SampleShape(num_tokens=NOMINAL_TOKENS, num_labelled=NOMINAL_TOKENS)
        return Lengths(mean=nominal, in_pass=None, num_rows=rows, num_passes=passes)
    lengths = [_lengths(_encoded(chat, sample)) for sample in samples]
    weights = _weights(recipe, by_source)
    columns = list(zip(*lengths, strict=True))
    total = math.fsum(weights)
    mean = [math.fsum(map(operator.mul, c, weights)) / total for c in columns]
    most = [max(c) for c in columns]
    notes.append(
        f"lengths are those of the first {len(samples)} samples: {mean[0]:,.0f} tokens on average,"
        f" {most[0]:,} at most, of which images take {most[2]:,}; longer ones take more"
    )
    if recipe.pack_tokens is not None and can_pack:
        # One row at a time, filled with samples of mean length.
        together = max(1.0, min(recipe.pack_tokens / mean[0], mine))
        most = [max(together * a, b) for a, b in zip(mean, most, strict=True)]
        rows, passes = 1, math.ceil(mine / together)
    names = ("num_tokens", "num_labelled", "num_image_tokens", "num_pixel_values")
    return Lengths(
        mean=SampleShape(**dict(zip(names, mean, strict=True))),
        in_pass=SampleShape(**dict(zip(names, most, strict=True))),
        num_rows=rows,
        num_passes=passes,
    )


def _weights(recipe: TrainRecipe, by_source: Sequence[Sequence[PreparedSample]]) -> list[float]:
    """Return how often each measured sample counts, as often as its source is drawn from.

    Sources without a weight are drawn from by their number of samples, which is not read here: then
    each measured sample counts once.
    """
    sources = recipe.data
    if any(source.weight is None for source in sources):
        return [1.0 for found in by_source for _ in found]
    weights = []
    for source, found in zip(sources, by_source, strict=True):
        weight = source.weight or 0.0
        tokens = sum(one.num_labelled for one in found)
        # A share of the answers' tokens is fewer samples if the answers are long.
        count = tokens if recipe.shares == "answer_tokens" else len(found)
        weights += [weight / count for _ in found]
    return weights


def _encoded(chat: Any, sample: PreparedSample) -> Any:
    """Encode a sample with grey images of the size of its own; none is decoded."""
    from consomme.models.token_counts import grey

    sizes = [upright_size(image.data) for image in sample.sample.images]
    return encode(chat, sample, [grey(size) for size in sizes if isinstance(size, tuple)])


def _lengths(row: Any) -> tuple[int, int, int, int]:
    """Return tokens, labelled tokens, image tokens and pixel values of an encoded sample."""
    if row.pixels is None:
        return len(row.input_ids), row.num_tokens, 0, 0
    values = sum(v.numel() for v in row.pixels.inputs.values() if v.is_floating_point())
    return len(row.input_ids), row.num_tokens, row.pixels.num_tokens, values


def _first(preparer: Preparer, source: TrainSource, number: int) -> list[PreparedSample]:
    """Prepare the first samples of the first unit of a source."""
    if source.inputs:
        source = dataclasses.replace(source, inputs=tuple(shard_urls(source.inputs))[:1])
    work = plan_source(source, f"data[{number}]").works[0]
    wanted = None if work.rows is None else set(work.rows)
    samples: list[PreparedSample] = []
    for row, sample in unit_reader(source.captions, only_new=source.only_recaptioned)(work.unit)[0]:
        if len(samples) == NUM_MEASURED:
            break
        if wanted is None or row in wanted:
            prepared = preparer.prepare(sample, source, random.Random(0))
            if not isinstance(prepared, Reject):
                samples.append(prepared)
    return samples
