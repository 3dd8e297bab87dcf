"""Keep policies that balance classes: downsample frequent ones, or take the same number of each.

Samples without a class: `balance`, which only downsamples, keeps them; `class_balanced`, which
builds a set, drops them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.bounds import Fraction, NonNegativeInt
from consomme.base.checked import rule
from consomme.base.errors import DataError
from consomme.curate.keep.combine import StratifiedDecision, count_strata, decide_strata
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    ChunkedPolicy,
    Chunks,
    Decision,
    KeepPolicy,
    Scores,
    column_of,
    floor_count,
)
from consomme.curate.keep.ranking import HighestCount, LowestCount, RandomCount, sample_random

# Shapes: N samples.
OBJECTS = ("person", "text", "building", "food", "animal", "plant")
"""Objects that more than nine of ten pictures of LAION-5B show, according to POINTS."""

OTHER = "other"
"""Value that `tag` gives a sample that shows none of its objects; it is no class to balance."""


def classes_of(scores: Scores, by: str) -> NDArray[np.object_]:
    """Return the class of each sample as a text; empty where it has none.

    Args:
        scores: Columns.
        by: A column of texts, or of whole numbers.

    Raises:
        DataError: The column has another type.
    """
    values_N = column_of(scores, by)
    if values_N.ndim == 1 and values_N.dtype.kind in "OU":
        return values_N.astype(object)
    known_N = ~np.isnan(values_N) if values_N.ndim == 1 else np.zeros(0, bool)
    if values_N.ndim > 1 or (values_N[known_N] % 1 != 0).any():
        kind = "vectors" if values_N.ndim > 1 else "fractions"
        raise DataError(f"column {by!r} holds {kind}, expected classes: texts or whole numbers")
    names = [
        str(int(value)) if known else "" for value, known in zip(values_N, known_N, strict=True)
    ]
    return np.array(names, dtype=object)


@dataclass(frozen=True, kw_only=True)
class _DownsampledDecision:
    """Keeps everything except a part of the frequent classes."""

    by: str
    counts: Mapping[str, int]
    mean: float
    sampled: Mapping[str, Decision]

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        class_N = classes_of(scores, self.by)
        kept_N = np.ones(len(hash_N), dtype=bool)
        for name, decision in self.sampled.items():
            part_N = class_N == name
            kept_N[part_N] = decision.mask({}, hash_N[part_N])
        return kept_N

    def describe(self) -> dict[str, Any]:
        return {
            "cut": None,
            "mean_count": self.mean,
            "counts": {name: number for name, number in self.counts.items() if name},
            "thinned": {
                name: int(decision.cut.num_kept)  # type: ignore[attr-defined]
                for name, decision in self.sampled.items()
            },
            "num_scored": sum(number for name, number in self.counts.items() if name),
            "num_missing": self.counts.get("", 0),
        }


@KEEP_POLICIES.register("balance")
@dataclass(frozen=True, kw_only=True)
class Balance(ChunkedPolicy):
    """Downsample overrepresented classes, and keep all other samples.

    A class with more samples than the mean of the listed ones is downsampled to `fraction` of its
    samples, rounded down and drawn by seeded hashes of their ids. Samples of unknown class and of
    `other` are kept; add `one_of` in an `all_of` to drop them.

    Source: arXiv 2409.04828 (POINTS), appendix E: any object more frequent than the mean of the six
    main ones is down-sampled to 60 %.
    """

    preview_fractions: ClassVar[bool] = False
    """The fraction is not of all samples, so a preview shows no other fractions."""

    by: str = "tags.object"
    """Column of classes: texts or integers."""

    objects: tuple[str, ...] = OBJECTS
    """Classes whose mean count is the limit; a class without samples counts as 0."""

    fraction: Fraction = 0.6
    """Share to keep of a class above the limit, in [0, 1]."""

    seed: int = 0
    """Another seed draws other samples."""

    @rule
    def _objects_are_unique(self) -> Iterator[str]:
        if not self.objects or len(set(self.objects)) < len(self.objects):
            yield f"objects: found {list(self.objects)}, expected at least one class, each once"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of classes."""
        return (self.by,)

    def decide(self, chunks: Chunks) -> Decision:
        """Count in one pass, then sample: two to six passes for each class above the mean."""
        counts = count_strata(chunks, self._classes, f"balance: {self.by!r}")
        total = sum(counts.get(name, 0) for name in self.objects)
        if not total:
            found = ", ".join(repr(name) for name in list(counts)[:8])
            raise DataError(
                f"balance: no sample is of any of {', '.join(self.objects)}; {self.by!r} has"
                f" {found}; list the classes to balance in `objects`"
            )
        # Compared as integers, so that no class exceeds the mean by rounding.
        above = [
            name
            for name, count in counts.items()
            if name not in ("", OTHER) and count * len(self.objects) > total
        ]
        return _DownsampledDecision(
            by=self.by,
            counts=counts,
            mean=total / len(self.objects),
            sampled={
                name: sample_random(
                    self._only(chunks, name), lambda n: floor_count(self.fraction, n), self.seed
                )
                for name in above
            },
        )

    def _classes(self, scores: Scores) -> NDArray[np.object_]:
        return classes_of(scores, self.by)

    def _only(self, chunks: Chunks, name: str) -> Chunks:
        def filtered() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
            for scores, hash_N in chunks():
                yield {}, hash_N[self._classes(scores) == name]

        return filtered


@KEEP_POLICIES.register("class_balanced")
@dataclass(frozen=True, kw_only=True)
class ClassBalanced(ChunkedPolicy):
    """Keep the same number of samples of each class; all of a class that has fewer.

    Samples of unknown class are dropped.
    """

    samples: NonNegativeInt
    """Number to keep of each class."""

    by: str = "tags.object"
    """Column of classes: texts or integers."""

    column: str | None = None
    """Numeric column: the lowest of each class are kept, none without a number. None selects at
    random."""

    highest: bool = False
    """Keep the highest of each class instead; needs a `column`."""

    seed: int = 0
    """Seed of the random selection."""

    @rule
    def _highest_needs_column(self) -> Iterator[str]:
        if self.highest and self.column is None:
            yield "class_balanced: found highest: true, but no column to rank by; set column"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of classes and the one that ranks."""
        return (self.by, *self._policy().columns)

    def decide(self, chunks: Chunks) -> StratifiedDecision:
        """Find the classes, then decide in each: two to six passes per class."""
        names = count_strata(chunks, self._classes, f"class_balanced: {self.by!r}")
        return decide_strata(
            chunks, self._classes, [name for name in names if name], self._policy()
        )

    def _policy(self) -> KeepPolicy:
        if self.column is None:
            return RandomCount(samples=self.samples, seed=self.seed)
        ranked = HighestCount if self.highest else LowestCount
        return ranked(samples=self.samples, column=self.column)

    def _classes(self, scores: Scores) -> NDArray[np.object_]:
        return classes_of(scores, self.by)
