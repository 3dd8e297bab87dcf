"""CLIP score of captions: how well a dual encoder finds that a caption goes with its image.

Source: CLIPScore, arXiv 2104.08718. With c the caption and v the image, CLIP-S is 2.5 times
max(cos(c, v), 0); RefCLIP-S is the harmonic mean of CLIP-S and the largest max(cos(c, r), 0) over
the captions r by people. The caption has `prefix` before it, the references too.

The encoder is another model than the one that writes. It compares after all have answered, and an
answer and its cosines then travel as one text, as those of judges do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable

from consomme.base.checked import Checked
from consomme.base.errors import DataError
from consomme.base.schema import located
from consomme.evaluate.benchmark import mean
from consomme.evaluate.metrics import interval_of_mean

SCALE = 2.5
"""Stretches cosines, so that scores of CLIP ViT-B/32 are from 0 to about 1."""


@dataclass(frozen=True, kw_only=True)
class ClipScore(Checked):
    """What compares captions with their images."""

    model: str = located()
    """A dual encoder (align, altclip, chinese_clip, clip, metaclip_2, siglip or siglip2): a folder,
    a URL, or `org/name[@revision]` on the hub. Scores of different encoders cannot be compared."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of its weights."""

    prefix: str = "A photo depicts "
    """Comes before each text, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class ToCompare:
    """A caption, and what it is about."""

    images: tuple[bytes, ...]
    """As they stand in the file; of several, the mean cosine counts."""

    caption: str
    references: tuple[str, ...] = ()
    """Captions by people."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Cosines of one caption."""

    image: float
    reference: float | None = None
    """The largest one with a caption by people; None without these."""

    is_cut: bool = False
    """Whether the caption was longer than the encoder takes, so that its end counts for nothing."""

    @property
    def clip_score(self) -> float:
        """CLIP-S, from 0 to 2.5."""
        return SCALE * max(self.image, 0.0)

    @property
    def ref_clip_score(self) -> float | None:
        """RefCLIP-S; None without references."""
        if self.reference is None:
            return None
        one, other = self.clip_score, max(self.reference, 0.0)
        return 2 * one * other / (one + other) if one and other else 0.0


@runtime_checkable
class HasClipScore(Protocol):
    """A kind of benchmark whose answers may be compared with their images."""

    clip_score: ClipScore | None

    def to_compare(self, answers: Sequence[str]) -> dict[int, ToCompare]:
        """Return what is compared, by the number of the request; empty answers are not."""


def with_cosines(answer: str, found: Compared | None) -> str:
    """Return an answer with its cosines; None where it could not be compared."""
    compared = asdict(found) if found else None
    return json.dumps({"answer": answer, "compared": compared}, ensure_ascii=False)


def split_cosines(text: str, clip_score: ClipScore | None) -> tuple[str, Compared | None]:
    """Return the answer and its cosines.

    Args:
        text: Of `with_cosines`, if the benchmark has a CLIP score; else an answer.
        clip_score: Of the benchmark.

    Raises:
        DataError: It has a CLIP score, and the answer was compared with nothing.
    """
    if clip_score is None or not text:
        return text, None
    try:
        found = json.loads(text)
        compared = found["compared"]
        return found["answer"], Compared(**compared) if compared else None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            "found captions that were compared with no image, to a benchmark with clip_score; only"
            " evaluate compares them, so leave clip_score out here"
        ) from error


def clip_figures(
    compared: Sequence[Compared | None], num_asked: int
) -> Iterator[tuple[str, float]]:
    """Yield CLIP score with its interval, and what could not be compared, which counts as 0.

    Args:
        compared: Of each answer.
        num_asked: Rows of the benchmark; those that cannot be asked count as 0.
    """
    bad = [0.0] * (num_asked - len(compared))
    scores = [*(one.clip_score if one else 0.0 for one in compared), *bad]
    low, high = interval_of_mean(scores)
    yield "clip_score", mean(scores)
    yield "clip_score_low", low
    yield "clip_score_high", high
    known = [one for one in compared if one]
    by_people = [score for one in known if (score := one.ref_clip_score) is not None]
    if known and len(by_people) == len(known):
        yield "ref_clip_score", mean([*by_people, *([0.0] * (num_asked - len(known)))])
    yield "num_not_compared", float(len(compared) - len(known))
    yield "num_captions_cut", float(sum(one.is_cut for one in known))
