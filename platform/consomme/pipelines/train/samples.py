"""What training reads: the units of each source, and what of them can be trained on.

One decision is made here: a sample is looked at whole before it is handed out. Its picture is
decoded and its text put into tokens, so a bad one costs a reject where it is read, and no step of
training finds out half-way. What is handed out is the encoded picture again, which is small.
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
from consomme.execution.stage import reject_of
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.storage.captions import check_units, recaptioned_units, unit_reader
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Work
from consomme.storage.units import plan_units
from consomme.storage.view import View
from consomme.vision.decode import DecodeProblem, decode


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """One sample that can be trained on."""

    sample: Sample
    """With the turns that are trained on, question included."""

    num_tokens: int
    """Of the whole conversation, picture included."""

    scale: float = 1.0
    """Its picture is enlarged so many times."""


@dataclass(frozen=True, kw_only=True)
class UnitContents:
    """What of a unit can be trained on, in the order of its rows, and what cannot."""

    unit_id: str
    samples: list[PreparedSample]
    rejects: list[Reject]


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One source of the training data."""

    source: TrainSource
    works: tuple[Work, ...]
    """Its units, in order, without those of which nothing is wanted."""

    num_rows: int
    """Samples it has, those that cannot be trained on included; of a share of them, about."""

    @property
    def weight(self) -> float:
        """Share of the batches, relative to the other sources."""
        return float(self.num_rows) if self.source.weight is None else self.source.weight

    @property
    def num_bytes(self) -> int:
        """Bytes to read for all of it, as far as shards tell."""
        return sum(work.unit.num_bytes for work in self.works)


def plan_source(source: TrainSource, name: str) -> SourcePlan:
    """List the units of a source; no picture is read.

    Raises:
        DataError: It holds no samples, or its captions are about other units.
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
        """Keep what samples are made for.

        Args:
            recipe: For its sources, and what is varied from epoch to epoch.
            chat: The model's `ChatEncoder`.
            max_tokens: Positions the language model has.
        """
        self.recipe, self.chat, self.max_tokens = recipe, chat, max_tokens

    def read(self, source: TrainSource, work: Work, number: int, epoch: int) -> UnitContents:
        """Read one unit.

        Args:
            source: What the unit is of.
            work: The unit, and which rows.
            number: Of the source.
            epoch: How often the unit was read before, if training goes straight on.
        """
        samples, rejects = unit_reader(source.captions, only_new=source.only_recaptioned)(work.unit)
        rows = None if work.rows is None else set(work.rows)

        def is_wanted(row: int, sample_id: str) -> bool:
            return (rows is None or row in rows) and is_in_share(sample_id, source.fraction)

        found = UnitContents(unit_id=work.unit.unit_id, samples=[], rejects=[])
        found.rejects.extend(one for row, one in rejects if is_wanted(row, one.sample_id))
        for row, sample in samples:
            if is_wanted(row, sample.sample_id):
                draw = random.Random(f"vary-{self.recipe.seed}-{number}-{epoch}-{sample.sample_id}")
                made = self.prepare(sample, source, draw)
                if isinstance(made, Reject):
                    found.rejects.append(made)
                else:
                    found.samples.append(made)
        return found

    def prepare(
        self, sample: Sample, source: TrainSource, draw: random.Random
    ) -> PreparedSample | Reject:
        """Make one sample ready, or say why it cannot be trained on."""
        from consomme.models.encoded import ImageRefusedError

        image = decode(sample.image)
        if isinstance(image, DecodeProblem):
            return reject_of(sample, image.reason, image.detail)
        turns = turns_of(sample, self.recipe.prompt)
        if source.shuffle_turns:
            turns = shuffled(turns, draw)
        scale = draw.uniform(1, self.recipe.max_upscale)
        made = PreparedSample(sample=replace(sample, turns=turns), num_tokens=0, scale=scale)
        try:
            spoken = encode(self.chat, made, image)
        except ImageRefusedError as error:
            return reject_of(sample, "image_not_encodable", str(error))
        except DataError as error:
            return reject_of(sample, "text_not_encodable", str(error))
        num_tokens = len(spoken.input_ids)
        if num_tokens > self.max_tokens:
            detail = f"{num_tokens} tokens, the model has {self.max_tokens} positions"
            return reject_of(sample, "sequence_too_long", detail)
        return replace(made, num_tokens=num_tokens)


def encode(chat: Any, prepared: PreparedSample, image: Image.Image | None = None) -> Any:
    """Put a sample into tokens and pixels; a model without eyes gets its words alone.

    Args:
        chat: The model's `ChatEncoder`.
        prepared: The sample.
        image: Its picture, if it was decoded before.
    """
    turns = prepared.sample.turns
    if not chat.has_vision:
        return chat.encode(turns, None)
    picture = decode(prepared.sample.image) if image is None else image
    if isinstance(picture, DecodeProblem):
        raise DataError(f"{prepared.sample.sample_id}: {picture.reason}: {picture.detail}")
    if prepared.scale != 1.0:
        size = (round(picture.width * prepared.scale), round(picture.height * prepared.scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return chat.encode(turns, picture)


def shuffled(turns: Sequence[Turn], draw: random.Random) -> tuple[Turn, ...]:
    """Put questions in another order, each with its answer.

    What does not go question, answer, question, answer after a word of the system stays as it is.
    """
    head = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = turns[len(head) :]
    pairs = [rest[at : at + 2] for at in range(0, len(rest), 2)]
    if any([turn.role for turn in pair] != ["user", "assistant"] for pair in pairs):
        return tuple(turns)
    draw.shuffle(pairs)
    return head + tuple(turn for pair in pairs for turn in pair)
