"""Keep policies that even out what a data set shows: fewer of the frequent, the same of each.

The one decision: samples without a class are nobody's. `balance`, which only thins out, leaves them
alone; `class_balanced`, which builds a set, takes none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.curate.checks import check_count, check_fraction
from consomme.curate.keep.combine import Strata, count_strata, decide_strata
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    Chunks,
    Decision,
    FromChunks,
    KeepPolicy,
    Scores,
    column_of,
    floor_count,
)
from consomme.curate.keep.ranking import HighestCount, LowestCount, RandomCount, draw

# Shapes: N samples.
OBJECTS = ("person", "text", "building", "food", "animal", "plant")
"""What more than nine of ten pictures of LAION-5B show, by POINTS."""

OTHER = "other"
"""What `tag` says of a sample that shows none of its objects: no class to even out."""


def classes_of(scores: Scores, by: str) -> NDArray[np.object_]:
    """Name the class of each sample; an empty text where it has none.

    Args:
        scores: Columns.
        by: A column of texts, or of whole numbers.

    Raises:
        DataError: The column holds something else.
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
class _Thinned:
    """Everything stays but some of the frequent classes."""

    by: str
    counts: Mapping[str, int]
    mean: float
    drawn: Mapping[str, Decision]

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        class_N = classes_of(scores, self.by)
        kept_N = np.ones(len(hash_N), dtype=bool)
        for name, decision in self.drawn.items():
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
                for name, decision in self.drawn.items()
            },
            "num_scored": sum(number for name, number in self.counts.items() if name),
            "num_missing": self.counts.get("", 0),
        }


@KEEP_POLICIES.register("balance")
@dataclass(frozen=True, kw_only=True)
class Balance(FromChunks):
    """Thin out what is shown too often, and keep all the rest.

    A class of more samples than the mean of the listed ones is cut down to `fraction` of its
    samples, rounded down and drawn by the hashes of their ids. Samples of unknown class and of
    `other` stay; add `one_of` in an `all_of` to drop them.

    Source: arXiv 2409.04828 (POINTS), appendix E: any object more frequent than the mean of the six
    main ones is down-sampled to 60 %.
    """

    sweeps: ClassVar[bool] = False
    """The fraction is not one of all samples, so a preview tries no others."""

    by: str = "tags.object"
    """Column of classes: texts or whole numbers."""

    objects: tuple[str, ...] = OBJECTS
    """Classes whose mean count is the limit; one that no sample shows counts as 0."""

    fraction: float = 0.6
    """Share that stays of a class above the limit, in [0, 1]."""

    seed: int = 0
    """Another seed, other samples."""

    def __post_init__(self) -> None:
        """Check list and fraction."""
        check_fraction(self.fraction)
        if not self.objects or len(set(self.objects)) < len(self.objects):
            raise RecipeError(
                f"objects: found {list(self.objects)}, expected at least one class, each once"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of classes."""
        return (self.by,)

    def decide(self, chunks: Chunks) -> Decision:
        """Count in one walk, then draw: two to six walks for each class above the mean."""
        counts = count_strata(chunks, self._classes, f"balance: {self.by!r}")
        total = sum(counts.get(name, 0) for name in self.objects)
        if not total:
            found = ", ".join(repr(name) for name in list(counts)[:8])
            raise DataError(
                f"balance: no sample is of any of {', '.join(self.objects)}; {self.by!r} has"
                f" {found}; list what is meant in `objects`"
            )
        # Compared as whole numbers: no class is above the mean by rounding.
        above = [
            name
            for name, count in counts.items()
            if name not in ("", OTHER) and count * len(self.objects) > total
        ]
        return _Thinned(
            by=self.by,
            counts=counts,
            mean=total / len(self.objects),
            drawn={
                name: draw(
                    self._only(chunks, name), lambda n: floor_count(self.fraction, n), self.seed
                )
                for name in above
            },
        )

    def _classes(self, scores: Scores) -> NDArray[np.object_]:
        return classes_of(scores, self.by)

    def _only(self, chunks: Chunks, name: str) -> Chunks:
        def walk() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
            for scores, hash_N in chunks():
                yield {}, hash_N[self._classes(scores) == name]

        return walk


@KEEP_POLICIES.register("class_balanced")
@dataclass(frozen=True, kw_only=True)
class ClassBalanced(FromChunks):
    """Keep the same number of samples of each class; all, of a class that has fewer.

    Samples of unknown class are dropped.
    """

    samples: int
    """How many to keep of each class."""

    by: str = "tags.object"
    """Column of classes: texts or whole numbers."""

    column: str | None = None
    """Column of numbers: the lowest of each class stay. None draws lots."""

    highest: bool = False
    """The highest of each class stay instead; needs a `column`."""

    seed: int = 0
    """Of the lots."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        check_count(self.samples)
        if self.highest and self.column is None:
            raise RecipeError("class_balanced: highest: true, but no column says highest of what")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of classes and the one that ranks."""
        return (self.by, *self._policy().columns)

    def decide(self, chunks: Chunks) -> Strata:
        """Find the classes, then decide in each: two to six walks per class."""
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
