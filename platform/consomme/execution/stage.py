"""What a stage is: the part of a pipeline that each verb writes for itself.

A stage gets samples and returns an outcome; reading, decoding, committing and everything about Ray
are around it. It is called on pieces of a unit, since the decoded pictures of a whole unit may be
more than fits into memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from PIL import Image

from consomme.base.sample import Reject, Sample


@dataclass(kw_only=True)
class Outcome:
    """What a stage made of some samples."""

    table: pa.Table
    """Columns with `row` and `sample_id` first."""

    rejects: list[tuple[int, Reject]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Further output: kind, suffix and content of each file."""


@dataclass(frozen=True, kw_only=True)
class UnitSample:
    """A sample and where it is in its unit."""

    row: int
    sample: Sample


@dataclass(frozen=True, kw_only=True)
class DecodedSample(UnitSample):
    """A sample with its picture decoded."""

    image: Image.Image


Gauge = tuple[float, str, float]
"""When (seconds since 1970), what, and how much."""


class UnitStage:
    """Base of a stage that wants decoded pictures.

    Three units are in an actor at a time: one is read, decoded or committed while another is worked
    on.
    """

    min_side_px: int | None = None
    """Pictures may come smaller than they are, with both sides at least this long: that is decoded
    in less time. None decodes them in full."""

    is_shared: bool = False
    """Whether several units may be worked on at once: for engines that put requests of different
    units into one batch, and so are never short of work at the end of a unit."""

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Do the stage's work on samples of one unit whose pictures could be decoded.

        Called on each piece of a unit in turn, and on nothing if a unit has no such sample.
        """
        raise TypeError(f"{type(self).__name__} defines no work()")

    def gauges(self) -> list[Gauge]:
        """Return what was measured on the side since the last call, for the report."""
        return []


class BytesStage:
    """Base of a stage that wants samples as they are, without a look at their pictures."""

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        """Do the stage's work on all samples of a unit that could be read."""
        raise TypeError(f"{type(self).__name__} defines no work()")


Stage = UnitStage | BytesStage


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """Put the outcomes of a unit's pieces together, in order."""
    if len(outcomes) == 1:
        return outcomes[0]
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.sums)
    return Outcome(
        table=pa.concat_tables([outcome.table for outcome in outcomes]).combine_chunks(),
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
        reference=sample.image_name,
    )
