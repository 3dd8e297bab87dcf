"""What a keep policy is: it is given the scores of all samples and says which of them stay.

The one decision a policy makes is global and exact: the same set whatever the order of the samples
and however they are cut into units and workers. Each policy is asked in one of two ways: with all
scores in arrays (`policy(scores, hash_N)`), or with a function that walks over them in chunks
(`policy.decide`), which needs a few megabytes for a hundred million samples.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.registry import Registry
from consomme.curate.keep.radix import Cut

# Shapes: N samples.
Scores = Mapping[str, NDArray[Any]]
"""Columns by name, aligned with each other: numbers, texts as objects, vectors as rows.

NaN is a missing number, the empty text a missing text, a row with a NaN a missing vector.
"""

Count = Callable[[int], int]
"""How many to keep, of how many that have a score."""

Chunks = Callable[[], Iterable[tuple[Scores, NDArray[np.uint64]]]]
"""Starts a fresh walk over (columns, hashes) of all samples."""


Mask = Callable[[Scores, NDArray[np.uint64]], NDArray[np.bool_]]
"""Says for each sample of a part whether it stays."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a policy decided about samples held in arrays."""

    mask_N: NDArray[np.bool_]  # noqa: N815
    """True where the sample stays."""

    cut: float | None
    """Last kept score; None if nothing is kept or no score decides."""

    tie_count: int
    """Samples whose score equals the cut; which of them stay is decided by their hash."""

    num_scored: int
    """Samples the fraction is taken of."""

    num_missing: int
    """Samples without a score (NaN): never kept."""


class Decision(Protocol):
    """A policy's answer for a whole run, to be applied part by part."""

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample of a part whether it stays."""

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of it: the cut, ties, samples without a score."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One place where an order of the samples was cut: a person may look at either side of it."""

    label: str
    """What the samples are ordered by."""

    values: Callable[[Scores], NDArray[np.floating]]
    """Gives the number that orders each sample."""

    cut: Cut
    """Where."""

    end: str = ""
    """Which of several cuts of one order it is."""

    among: Mask | None = None
    """Which samples it decides about, where other rules decide about the rest; None means all."""


@runtime_checkable
class HasEdges(Protocol):
    """A decision by order, which has edges to look at."""

    def edges(self) -> tuple[Edge, ...]:
        """Return where the samples' orders were cut."""


class KeepPolicy(Protocol):
    """What the registry promises about every keep policy."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns the policy reads."""

    def decide(self, chunks: Chunks) -> Decision:
        """Look at all samples, a few times, and decide."""

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""


KEEP_POLICIES: Registry[KeepPolicy] = Registry("keep policy", "consomme/curate/keep/registry.py")

REGISTRY = "consomme.curate.keep.registry:KEEP_POLICIES"
"""Where recipes find it: the module that has imported every policy."""


class FromChunks:
    """Gives a policy that walks over chunks the other way of being asked."""

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
        """Decide about samples held in arrays."""
        return call(self, scores, hash_N)  # type: ignore[arg-type]


def call(policy: KeepPolicy, scores: Scores, hash_N: NDArray[np.uint64]) -> Kept:
    """Decide about samples held in arrays, by a policy that walks over chunks."""
    decision = policy.decide(lambda: [(scores, hash_N)])
    stats = decision.describe()
    return Kept(
        mask_N=decision.mask(scores, hash_N),
        cut=stats.get("cut"),
        tie_count=stats.get("tie_count", 0),
        num_scored=stats.get("num_scored", len(hash_N)),
        num_missing=stats.get("num_missing", 0),
    )


def describe_cut(cut: Cut) -> dict[str, Any]:
    """Return what the manifest says of a cut."""
    return {
        "cut": cut.value,
        "tie_count": cut.tie_count,
        "num_scored": cut.num_scored,
        "num_missing": cut.num_missing,
    }


def floor_count(fraction: float, total: int) -> int:
    """Return `floor(fraction * total)` of the decimal number the recipe says.

    In binary 0.29 * 100 is 28.999…, and a sample would be lost to rounding.
    """
    return int(Decimal(repr(fraction)) * total)


def column_of(scores: Scores, column: str) -> NDArray[Any]:
    """Return a column.

    Raises:
        DataError: There is none of this name.
    """
    if column not in scores:
        raise DataError(
            f"no score column {column!r}; the score run has {', '.join(sorted(scores))}"
        )
    return scores[column]


def numbers_of(scores: Scores, column: str) -> NDArray[np.floating]:
    """Return a column of numbers.

    Raises:
        DataError: There is none of this name, or it holds something else.
    """
    values_N = column_of(scores, column)
    if values_N.ndim != 1 or values_N.dtype.kind not in "fiub":
        kind = "vectors" if values_N.ndim > 1 else "text"
        raise DataError(f"column {column!r} holds {kind}, expected numbers to rank or compare")
    return values_N


def texts_of(scores: Scores, column: str) -> NDArray[np.object_]:
    """Return a column of texts.

    Raises:
        DataError: There is none of this name, or it holds something else.
    """
    values_N = column_of(scores, column)
    if values_N.ndim != 1 or values_N.dtype.kind not in "OU":
        raise DataError(
            f"column {column!r} holds {'vectors' if values_N.ndim > 1 else 'numbers'}, expected"
            " text, such as a name; numbers are chosen by `threshold`"
        )
    return values_N


def some_of(
    scores: Scores, part_N: NDArray[np.bool_], columns: Iterable[str]
) -> dict[str, NDArray[Any]]:
    """Take some samples' share of the columns that somebody needs."""
    return {name: column_of(scores, name)[part_N] for name in columns}
