"""Read the units of each training source, and check which samples can be trained on.

A sample is checked completely when it is read: its image is decoded and its text tokenized, so a
bad sample becomes a reject, and no training step fails half-way. What is passed on is the encoded
images, which are small. A sample that is too long is rejected, or loses turns or images from its
end, as the recipe says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from consomme.base.errors import DataError
from consomme.base.hashing import is_in_share
from consomme.base.sample import (
    ImageRef,
    Reject,
    Sample,
    Turn,
    content_of,
    turns_of,
    without_images,
)
from consomme.execution.stage import decoded_images, reject_of
from consomme.pipelines.train.images import Size, image_options, resized, resized_to
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.shorten import shorter_documents, shorter_turns, with_turns
from consomme.storage.captions import check_units, recaptioned_units, unit_reader
from consomme.storage.layouts import ShardLayout
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Work
from consomme.storage.units import plan_units
from consomme.storage.view import View
from consomme.vision.decode import DecodeProblem, decode, upright_size
from consomme.vision.tiling.whole import is_sample_split


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """One sample that can be trained on."""

    sample: Sample
    """With the turns that are trained on, prompt included."""

    num_tokens: int
    """Of the whole conversation, images included."""

    num_labelled: int = 0
    """Labelled tokens: those of its answers."""

    scale: float = 1.0
    """Factor by which its images are enlarged."""

    min_pixels: int | None = None
    """A smaller image is enlarged to this many pixels; None enlarges none."""

    max_pixels: int | None = None
    """A larger image is reduced to this many pixels; None reduces none."""

    is_split: bool | None = None
    """Whether its images are split, where some samples' are; None: as the processor does."""

    is_shortened: bool = False
    """Whether it was too long, and lost turns or images from its end."""

    @property
    def num_images(self) -> int:
        """Images that are shown."""
        return len(self.sample.images)


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
        reading = source.reading.for_units()
        units = plan_units(source.inputs, "data", reading=reading)
        if source.captions:
            units = recaptioned_units(source.captions, sorted({unit.shard for unit in units}))
            if reading and any(unit.reading != reading for unit in units):
                raise DataError(
                    f"{name}: reading differs from that of {source.captions}, whose captions are of"
                    " samples that were read in another way; give the same, or leave it out"
                )
        works = [Work(unit=unit) for unit in units]
    rows = {work.unit.unit_id: work.num_rows for work in works}
    if source.captions and source.only_recaptioned:
        found = RunFolder.at(source.captions).iter_commits()
        new = {record.unit_id: record.counts.get("new", 0) for record in found}
        rows = {unit: min(count, new.get(unit, 0)) for unit, count in rows.items()}
    works = [work for work in works if rows[work.unit.unit_id]]
    layouts = (ShardLayout.of_unit(work.unit.layout, work.unit.shard) for work in works)
    lost = list(itertools.takewhile(lambda layout: layout.kind == "lost", layouts))
    if len(lost) == len(works):
        why = f": {lost[0].reason}: {lost[0].detail}" if lost else ""
        raise DataError(f"{name}: {source} holds no samples{why}")
    num_rows = max(1, round(sum(rows.values()) * source.fraction))
    return SourcePlan(source=source, works=tuple(works), num_rows=num_rows)


class Preparer:
    """Reads units for one model."""

    def __init__(
        self,
        recipe: TrainRecipe,
        chat: Any,
        max_tokens: int,
        *,
        decodes: bool = True,
        splits_some: bool = True,
    ) -> None:
        """Keep the model's limits.

        Args:
            recipe: Says what is varied from epoch to epoch, and what becomes of long samples.
            chat: The model's `ChatEncoder`.
            max_tokens: Number of positions of the language model.
            decodes: Whether images are decoded, so that damaged ones are rejected; if not, their
                headers are enough, for a plan.
            splits_some: Whether the images of some samples are split, as the recipe or the
                processor says; if not, the processor's own way is all samples'.

        Raises:
            CheckpointError: The recipe splits, and the model's processor cannot be told to.
        """
        from consomme.models.tiling.splitting import split_options_of

        processor = getattr(chat, "template_owner", None)
        found = split_options_of(processor, recipe.split_fraction)
        self._split_fraction = None if found is None or not splits_some else found[1]
        self.recipe, self.chat, self.decodes = recipe, chat, decodes
        self.max_tokens = min(max_tokens, recipe.max_tokens or max_tokens)
        self._limit = f"the model has {max_tokens} positions"
        if self.max_tokens < max_tokens:
            self._limit = f"max_tokens is {self.max_tokens}"

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

        sizes = self._sizes(sample)
        if isinstance(sizes, Reject):
            return sizes
        turns = turns_of(sample, self.recipe.prompt)
        answers = [turn for turn in turns if turn.role == "assistant"]
        if answers and not any(turn.is_labelled for turn in answers):
            detail = "no turn of the assistant is labelled, so there is nothing to learn"
            return reject_of(sample, "conversation_malformed", detail)
        empty = [n for n, turn in enumerate(turns) if _is_empty_answer(turn)]
        if empty:
            return reject_of(sample, "caption_empty", f"the answer in turn {empty[0]} is empty")
        if source.shuffle_turns:
            turns = shuffled(turns, draw)
        prepared = PreparedSample(
            sample=replace(sample, turns=turns),
            num_tokens=0,
            scale=draw.uniform(1, self.recipe.max_upscale),
            min_pixels=self.recipe.min_pixels,
            max_pixels=self.recipe.max_pixels,
            is_split=self._is_split(sample.sample_id),
        )
        try:
            measured = self._measured(prepared, sizes)
        except DataError as error:
            return reject_of(sample, refusal_reason(error), str(error))
        if measured.num_tokens > self.max_tokens:
            return self._shortened(measured, sizes)
        return measured

    def _is_split(self, sample_id: str) -> bool | None:
        """Return whether a sample's images are split: by its id and the seed, in every epoch."""
        if self._split_fraction is None:
            return None
        return is_sample_split(sample_id, self.recipe.seed, self._split_fraction)

    def _sizes(self, sample: Sample) -> list[Size] | Reject:
        """Return the sizes of a sample's images, or its reject if one is none."""
        if self.decodes:
            images = decoded_images(sample, [decode(image.data) for image in sample.images])
            return images if isinstance(images, Reject) else [image.size for image in images]
        sizes = []
        for image in sample.images:
            size = upright_size(image.data)
            if isinstance(size, DecodeProblem):
                return reject_of(sample, size.reason, size.detail)
            sizes.append(size)
        return sizes

    def _measured(self, prepared: PreparedSample, sizes: Sequence[Size]) -> PreparedSample:
        """Count the tokens of a sample by the sizes of its images; none of them is prepared."""
        from consomme.models.token_counts import token_counter_for

        if not self.chat.has_vision:
            encoded = encode(self.chat, prepared)
            num_tokens, num_labelled = len(encoded.input_ids), encoded.num_tokens
        else:
            found = token_counter_for(self.chat).count(
                prepared.sample.turns,
                [resized_to(size, prepared) for size in sizes],
                skip_rewritten=True,
                image_options=image_options(self.chat, prepared),
            )
            num_tokens, num_labelled = found.num_tokens, found.num_labelled
        return replace(prepared, num_tokens=num_tokens, num_labelled=num_labelled)

    def _shortened(
        self, prepared: PreparedSample, sizes: Sequence[Size]
    ) -> PreparedSample | Reject:
        """Return as much of a sample that is too long as fits, or its reject."""
        sample, how = prepared.sample, self.recipe.too_long
        choices: list[tuple[Turn, ...]] = []
        if sample.is_document and how in ("cut_document", "shorten"):
            choices = shorter_documents(sample.turns)
        elif not sample.is_document and how in ("drop_turns", "shorten"):
            choices = shorter_turns(sample.turns)
        best, low, high = None, 0, len(choices)
        while low < high:
            middle = (low + high) // 2
            some, kept = with_turns(sample, choices[middle])
            try:
                found = self._measured(
                    replace(prepared, sample=some, is_shortened=True), [sizes[k] for k in kept]
                )
            except DataError:
                # None of these turns is labelled: more of them may be.
                low = middle + 1
                continue
            if found.num_tokens <= self.max_tokens:
                best, low = found, middle + 1
            else:
                high = middle
        if best is not None:
            return best
        detail = f"{prepared.num_tokens} tokens, {self._limit}"
        if choices:
            detail += ", and what could be left of it does not fit or has nothing to learn"
        return reject_of(sample, "sequence_too_long", detail)


def encode(chat: Any, prepared: PreparedSample, images: Sequence[Image.Image] | None = None) -> Any:
    """Encode a sample into tokens and pixels; without a vision encoder, into tokens only.

    Images are resized first, if the recipe says so; the model's own processor does what it does to
    images of that size.

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
    options = image_options(chat, prepared)
    row = chat.encode(
        sample.turns,
        [resized(image, prepared) for image in images],
        skip_rewritten=True,
        **({"image_options": options} if options else {}),
    )
    if prepared.num_tokens and len(row.input_ids) != prepared.num_tokens:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        raise DataError(
            f"{sample.sample_id}: found {len(row.input_ids)} tokens, expected"
            f" {prepared.num_tokens}, as counted for images of {sizes}: the model's processor does"
            " not make tokens by the size of an image alone; use another family or processor"
        )
    return row


def _is_empty_answer(turn: Turn) -> bool:
    is_answer = turn.role == "assistant" and turn.is_labelled
    return is_answer and not turn.text.strip()


def shuffled(turns: Sequence[Turn], draw: random.Random) -> tuple[Turn, ...]:
    """Shuffle the questions of a conversation, each with its answer and its images.

    Images that begin the first question are what all questions are about, if no other turn has any:
    they begin whichever question comes first.

    Returns any conversation unchanged that is not pairs of user and assistant turns, after at most
    one system turn.
    """
    head = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = list(turns[len(head) :])
    pairs = [rest[at : at + 2] for at in range(0, len(rest), 2)]
    if any([turn.role for turn in pair] != ["user", "assistant"] for pair in pairs):
        return tuple(turns)
    shared: tuple[str | ImageRef, ...] = ()
    if rest and _leads(rest[0]) and not any(turn.image_indices for turn in rest[1:]):
        shared = tuple(part for part in rest[0].parts if isinstance(part, ImageRef))
        pairs[0][0] = without_images(rest[:1])[0]
    draw.shuffle(pairs)
    if shared:
        first = pairs[0][0]
        pairs[0][0] = replace(first, content=content_of([*shared, *first.parts]))
    return head + tuple(turn for pair in pairs for turn in pair)


def _leads(turn: Turn) -> bool:
    """Whether all images of a turn stand before its text."""
    kinds = [isinstance(part, str) for part in turn.parts]
    return kinds == sorted(kinds)
