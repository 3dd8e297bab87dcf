"""What a rank trains on: samples with their newest captions, and those that cannot be used.

One decision is made here: a rank holds its samples in memory and decodes pictures as it needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample, turns_of
from consomme.pipelines.captions import check_units, reader, units_of
from consomme.pipelines.stage import reject_of
from consomme.pipelines.train import TrainSource
from consomme.storage.units import plan_units
from consomme.storage.view import View
from consomme.vision.decode import DecodeProblem, decode


@dataclass
class TrainSet:
    """What a worker trains on."""

    samples: list[Sample] = field(default_factory=list)
    weights: list[tuple[int, float]] = field(default_factory=list)
    """(number of samples, relative weight) of each source, in the order of `samples`."""

    rejects: list[Reject] = field(default_factory=list)


def load_samples(sources: Sequence[TrainSource]) -> TrainSet:
    """Read all samples of the sources, with their newest captions, in unit order."""
    found = TrainSet()
    for source in sources:
        samples = list(_read(source))
        if not samples:
            raise DataError(f"data: {source} holds no samples")
        weight = float(len(samples)) if source.weight is None else source.weight
        found.samples += samples
        found.weights.append((len(samples), weight))
    return found


def usable_samples(data: TrainSet, dialogue: Any, prompt: str, max_tokens: int) -> TrainSet:
    """Leave out what cannot be trained on, so that no step finds out half-way.

    Args:
        data: Samples as they were read.
        dialogue: The model's `Dialogue`.
        prompt: User turn put before samples that are captions only.
        max_tokens: Positions the language model has.
    """
    found = TrainSet()
    position = 0
    for size, weight in data.weights:
        good = []
        for sample in data.samples[position : position + size]:
            problem = _problem(sample, dialogue, prompt, max_tokens)
            if problem:
                found.rejects.append(reject_of(sample, *problem))
            else:
                good.append(sample)
        found.samples += good
        found.weights.append((len(good), weight))
        position += size
    return found


def _problem(sample: Sample, dialogue: Any, prompt: str, max_tokens: int) -> tuple[str, str] | None:
    from consomme.models.dialogue import PictureRefusedError

    image = decode(sample.image)
    if isinstance(image, DecodeProblem):
        return image.reason, image.detail
    try:
        spoken = encode(dialogue, sample, image, prompt)
    except PictureRefusedError as error:
        return "image_not_encodable", str(error)
    except DataError as error:
        return "text_not_encodable", str(error)
    num_tokens = len(spoken.input_ids)
    if num_tokens > max_tokens:
        return "sequence_too_long", f"{num_tokens} tokens, the model has {max_tokens} positions"
    return None


def encode(dialogue: Any, sample: Sample, image: Any, prompt: str) -> Any:
    """Put a sample into tokens; a model without eyes gets its words alone."""
    return dialogue.encode(turns_of(sample, prompt), image if dialogue.has_eyes else None)


def _read(source: TrainSource) -> Iterator[Sample]:
    """Yield a source's samples, with the captions of its recaption run."""
    read = reader(source.captions, only_new=source.only_recaptioned)
    if source.view:
        view = View.load(source.view)
        check_units(source.captions, (unit.unit_id for unit in view.units))
        for unit, rows in view.rows():
            wanted = set(rows)
            if wanted:
                yield from (sample for row, sample in read(unit)[0] if row in wanted)
        return
    units = plan_units(source.inputs, "data")
    if source.captions:
        units = units_of(source.captions, sorted({unit.shard for unit in units}))
    for unit in units:
        yield from (sample for _, sample in read(unit)[0])
