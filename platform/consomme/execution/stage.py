"""The contract of a stage: the part of a pipeline that each verb writes for itself.

A stage gets samples and returns an outcome. Reading, decoding, committing and everything about Ray
happen around it. It is called on pieces of a unit, because the decoded pictures of a whole unit may
not fit into memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from PIL import Image

from consomme.base.sample import Reject, Sample, printable
from consomme.vision.problem import DecodeProblem


@dataclass(kw_only=True)
class Outcome:
    """The result of a stage for some samples."""

    table: pa.Table
    """Columns; `row` and `sample_id` come first."""

    rejects: list[tuple[int, Reject]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Additional output files: kind, suffix and content of each."""


@dataclass(frozen=True, kw_only=True)
class UnitSample:
    """A sample and its row in the unit."""

    row: int
    sample: Sample


@dataclass(frozen=True, kw_only=True)
class DecodedSample(UnitSample):
    """A sample with its pictures decoded."""

    images: tuple[Image.Image, ...]
    """Aligned with the sample's images."""


Gauge = tuple[float, str, float]
"""Time (seconds since 1970), name and value of one measurement."""


class UnitStage:
    """Base of a stage that takes decoded pictures.

    An actor holds up to three units: one is read, decoded or committed while another is worked on.
    """

    min_side_px: int | None = None
    """Decode pictures at reduced size, with both sides at least this long, which takes less time.
    None decodes at full size."""

    is_shared: bool = False
    """Whether `work` may run for several units at once: for engines that batch requests of several
    units, so that they are not idle at the end of a unit."""

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Process samples of one unit whose pictures were decoded.

        Called for each piece of a unit in turn, and once with no samples if a unit has none.
        """
        raise TypeError(f"{type(self).__name__} defines no work()")

    def gauges(self) -> list[Gauge]:
        """Return measurements since the last call, for the report."""
        return []


class BytesStage:
    """Base of a stage that takes samples with their pictures undecoded."""

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        """Process all samples of a unit that could be read."""
        raise TypeError(f"{type(self).__name__} defines no work()")


Stage = UnitStage | BytesStage


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """Concatenate the outcomes of a unit's pieces, in order.

    A column that a piece has no need for, such as one about further images, is null there.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.sums)
    return Outcome(
        # A piece may have a column that no sample of another piece needs.
        table=pa.concat_tables(
            [outcome.table for outcome in outcomes], promote_options="default"
        ).combine_chunks(),
        rejects=[entry for outcome in outcomes for entry in outcome.rejects],
        counts=dict(counts),
        sums={name: math.fsum(o.sums.get(name, 0.0) for o in outcomes) for name in names},
        files=[file for outcome in outcomes for file in outcome.files],
    )


def reject_of(sample: Sample, reason: str, detail: str) -> Reject:
    """Make the reject of a sample that was read but cannot be used."""
    return Reject(
        sample_id=sample.sample_id,
        source=sample.source,
        reason=reason,
        detail=detail,
        reference=sample.name,
    )


def decoded_images(
    sample: Sample, decoded: Sequence[Image.Image | DecodeProblem]
) -> tuple[Image.Image, ...] | Reject:
    """Return a sample's decoded images; or its reject, if one of them cannot be decoded.

    Args:
        sample: The sample.
        decoded: Aligned with its images.
    """
    images = []
    for number, image in enumerate(decoded):
        if isinstance(image, DecodeProblem):
            name = printable(sample.images[number].name)
            which = f"image {number + 1} of {len(decoded)} ({name}): " if len(decoded) > 1 else ""
            return reject_of(sample, image.reason, which + image.detail)
        images.append(image)
    return tuple(images)
