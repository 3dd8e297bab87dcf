"""Read the units of each training source, and check which samples can be trained on.

A sample is checked completely when it is read: its image is decoded and its text tokenized, so a
bad sample becomes a reject, and no training step fails half-way. What is passed on is the encoded
image, which is small.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from consomme.base.errors import DataError
from consomme.base.hashing import is_in_share
from consomme.base.sample import Reject, Sample, Turn, turns_of
from consomme.execution.stage import decoded_images, reject_of
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.storage.captions import check_units, recaptioned_units, unit_reader
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Work
from consomme.storage.units import plan_units
from consomme.storage.view import View
from consomme.vision.decode import decode


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """One sample that can be trained on."""

    sample: Sample
    """With the turns that are trained on, prompt included."""

    num_tokens: int
    """Of the whole conversation, image included."""

    scale: float = 1.0
    """Factor by which its image is enlarged."""


@dataclass(frozen=True, kw_only=True)
class UnitContents:
    """Samples of a unit that can be trained on, in the order of its rows, and its rejects."""

    unit_id: str
    samples: list[PreparedSample]
    rejects: list[Reject]


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One source of the training data."""

    source: TrainSource
    works: tuple[Work, ...]
    """Its units, in order; those without a wanted sample are left out."""

    num_rows: int
    """Number of samples before rejects; approximate if `fraction` is below 1."""

    @property
    def weight(self) -> float:
        """Share of the batches, relative to the other sources."""
        return float(self.num_rows) if self.source.weight is None else self.source.weight

    @property
    def num_bytes(self) -> int:
        """Bytes to read for the whole source, as far as the shards say."""
        return sum(work.unit.num_bytes for work in self.works)


def plan_source(source: TrainSource, name: str) -> SourcePlan:
    """List the units of a source; no image is read.

    Raises:
        DataError: The source holds no samples, or its captions belong to other units.
    """
    if source.view:
        view = View.load(source.view)
        check_units(source.captions, (unit.unit_id for unit in view.units))
        works = [Work(unit=unit, bitmap=bitmap) for unit, bitmap in view.entries]
    else:
        units = plan_units(source.inputs, "data")
        if source.captions:
            units = recaptioned_units(source.captions, sorted({unit.shard for unit in units}))
        works = [Work(unit=unit) for unit in units]
    rows = {work.unit.unit_id: work.num_rows for work in works}
    if source.captions and source.only_recaptioned:
        found = RunFolder.at(source.captions).iter_commits()
        new = {record.unit_id: record.counts.get("new", 0) for record in found}
        rows = {unit: min(count, new.get(unit, 0)) for unit, count in rows.items()}
    works = [work for work in works if rows[work.unit.unit_id]]
    if not works:
        raise DataError(f"{name}: {source} holds no samples")
    num_rows = max(1, round(sum(rows.values()) * source.fraction))
    return SourcePlan(source=source, works=tuple(works), num_rows=num_rows)


class Preparer:
    """Reads units for one model."""

    def __init__(self, recipe: TrainRecipe, chat: Any, max_tokens: int) -> None:
        """Keep the model's limits.

        Args:
            recipe: Says what is varied from epoch to epoch.
            chat: The model's `ChatEncoder`.
            max_tokens: Number of positions of the language model.
        """
        self.recipe, self.chat, self.max_tokens = recipe, chat, max_tokens

    def read(self, source: TrainSource, work: Work, number: int, epoch: int) -> UnitContents:
        """Read one unit.

        Args:
            source: Source of the unit.
            work: The unit, and which of its rows are wanted.
            number: Number of the source.
            epoch: Epoch of the source, which seeds augmentation.
        """
        samples, rejects = unit_reader(source.captions, only_new=source.only_recaptioned)(work.unit)
        rows = None if work.rows is None else set(work.rows)

        def is_wanted(row: int, sample_id: str) -> bool:
            return (rows is None or row in rows) and is_in_share(sample_id, source.fraction)

        contents = UnitContents(unit_id=work.unit.unit_id, samples=[], rejects=[])
        contents.rejects.extend(one for row, one in rejects if is_wanted(row, one.sample_id))
        for row, sample in samples:
            if is_wanted(row, sample.sample_id):
                draw = random.Random(f"vary-{self.recipe.seed}-{number}-{epoch}-{sample.sample_id}")
                prepared = self.prepare(sample, source, draw)
                if isinstance(prepared, Reject):
                    contents.rejects.append(prepared)
                else:
                    contents.samples.append(prepared)
        return contents

    def prepare(
        self, sample: Sample, source: TrainSource, draw: random.Random
    ) -> PreparedSample | Reject:
        """Check one sample; returns a reject if it cannot be trained on."""
        from consomme.models.encoded import refusal_reason

        images = decoded_images(sample, [decode(image.data) for image in sample.images])
        if isinstance(images, Reject):
            return images
        turns = turns_of(sample, self.recipe.prompt)
        empty = [n for n, turn in enumerate(turns) if _is_empty_answer(turn)]
        if empty:
            return reject_of(sample, "caption_empty", f"the answer in turn {empty[0]} is empty")
        if source.shuffle_turns:
            turns = shuffled(turns, draw)
        scale = draw.uniform(1, self.recipe.max_upscale)
        prepared = PreparedSample(sample=replace(sample, turns=turns), num_tokens=0, scale=scale)
        try:
            encoded = encode(self.chat, prepared, images)
        except DataError as error:
            return reject_of(sample, refusal_reason(error), str(error))
        num_tokens = len(encoded.input_ids)
        if num_tokens > self.max_tokens:
            detail = f"{num_tokens} tokens, the model has {self.max_tokens} positions"
            return reject_of(sample, "sequence_too_long", detail)
        return replace(prepared, num_tokens=num_tokens)


def encode(chat: Any, prepared: PreparedSample, images: Sequence[Image.Image] | None = None) -> Any:
    """Encode a sample into tokens and pixels; without a vision encoder, into tokens only.

    Earlier answers that the chat template writes without their reasoning are not trained on; the
    last one is.

    Args:
        chat: The model's `ChatEncoder`.
        prepared: The sample.
        images: Its images, if they are decoded already.
    """
    sample = prepared.sample
    if not chat.has_vision:
        return chat.encode(sample.turns, skip_rewritten=True, shows_images=False)
    if images is None:
        found = decoded_images(sample, [decode(image.data) for image in sample.images])
        if isinstance(found, Reject):
            raise DataError(f"{sample.sample_id}: {found.reason}: {found.detail}")
        images = found
    if prepared.scale != 1.0:
        images = [
            image.resize(
                (round(image.width * prepared.scale), round(image.height * prepared.scale)),
                Image.Resampling.BICUBIC,
            )
            for image in images
        ]
    return chat.encode(sample.turns, images, skip_rewritten=True)


def _is_empty_answer(turn: Turn) -> bool:
    return turn.role == "assistant" and not turn.text.strip()


def shuffled(turns: Sequence[Turn], draw: random.Random) -> tuple[Turn, ...]:
    """Shuffle the questions of a conversation, each with its answer.

    Returns any conversation unchanged that is not pairs of user and assistant turns, after at most
    one system turn.
    """
    head = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = turns[len(head) :]
    pairs = [rest[at : at + 2] for at in range(0, len(rest), 2)]
    if any([turn.role for turn in pair] != ["user", "assistant"] for pair in pairs):
        return tuple(turns)
    draw.shuffle(pairs)
    return head + tuple(turn for pair in pairs for turn in pair)
