"""The interface of keep policies: given the scores of all samples, a policy selects some of them.

A policy's decision is global and exact: the selected set does not depend on the order of the
samples or on how they are split into units and workers. A policy can be called in two ways: with
all scores in arrays (`policy(scores, hash_N)`), or with a function that iterates over them in
chunks (`policy.decide`), which needs a few megabytes for a hundred million samples.

A sample may have no value in a column: a text without a picture has no `image_gain`, and what
another run rejected has no tag. No policy keeps a sample for a number that it compares or ranks and
that is missing; each policy says what it does instead, and `keep_missing` keeps such samples.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from consomme.base.checked import Checked
from consomme.base.errors import DataError
from consomme.base.registry import Registry
from consomme.curate.keep.radix import Cut

# Shapes: N samples.
Scores = Mapping[str, NDArray[Any]]
"""Columns by name, aligned with each other: numbers, texts as objects, vectors as rows.

NaN is a missing number, the empty text a missing text, a row with a NaN a missing vector.
"""

Count = Callable[[int], int]
"""Maps the number of samples that have a score to the number to keep."""

Chunks = Callable[[], Iterable[tuple[Scores, NDArray[np.uint64]]]]
"""Starts a new pass over all samples, in chunks of (columns, hashes)."""

Mask = Callable[[Scores, NDArray[np.uint64]], NDArray[np.bool_]]
"""Maps the columns and hashes of a chunk to True where the sample is kept."""


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """The result of a policy for samples held in arrays."""

    mask_N: NDArray[np.bool_]  # noqa: N815
    """True where the sample is kept."""

    cut: float | None
    """Last kept score; None if nothing is kept or the policy does not cut at a score."""

    tie_count: int
    """Samples whose score equals the cut; their hashes decide which of them are kept."""

    num_scored: int
    """Samples with a score, of which a fraction is taken."""

    num_missing: int
    """Samples without a score (NaN): never kept."""


class Decision(Protocol):
    """A policy's decision about a whole run, applied chunk by chunk."""

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return True for each sample of a chunk that is kept."""

    def describe(self) -> dict[str, Any]:
        """Return the statistics for the manifest: the cut, ties, samples without a score."""


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """A cut in an order of the samples; a preview shows samples on either side of it."""

    label: str
    """Name of the quantity that orders the samples."""

    values: Callable[[Scores], NDArray[np.floating]]
    """Computes that quantity for each sample."""

    cut: Cut
    """The cut itself."""

    end: str = ""
    """Which cut it is, if one order has several, such as `lower end`."""

    among: Mask | None = None
    """Samples for which this cut is decisive, if other rules decide about the rest; None: all."""


@runtime_checkable
class HasBoundaries(Protocol):
    """A decision that cuts an order of the samples."""

    def boundaries(self) -> tuple[Boundary, ...]:
        """Return every cut."""


class KeepPolicy(Protocol):
    """Interface of every registered keep policy."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns the policy reads."""

    def decide(self, chunks: Chunks) -> Decision:
        """Make a few passes over all samples and decide."""

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> PolicyResult:
        """Select among samples held in arrays."""


KEEP_POLICIES: Registry[KeepPolicy] = Registry("keep policy", "consomme/curate/keep/registry.py")

REGISTRY = "consomme.curate.keep.registry:KEEP_POLICIES"
"""Import path of the registry, in a module that imports every policy."""


class ChunkedPolicy(Checked):
    """Base of policies that implement `decide`: adds the call with arrays."""

    def __call__(self, scores: Scores, hash_N: NDArray[np.uint64]) -> PolicyResult:
        """Select among samples held in arrays."""
        return decide_arrays(self, scores, hash_N)  # type: ignore[arg-type]


def decide_arrays(policy: KeepPolicy, scores: Scores, hash_N: NDArray[np.uint64]) -> PolicyResult:
    """Select among samples held in arrays by the policy's `decide`."""
    decision = policy.decide(lambda: [(scores, hash_N)])
    stats = decision.describe()
    return PolicyResult(
        mask_N=decision.mask(scores, hash_N),
        cut=stats.get("cut"),
        tie_count=stats.get("tie_count", 0),
        num_scored=stats.get("num_scored", len(hash_N)),
        num_missing=stats.get("num_missing", 0),
    )


def describe_cut(cut: Cut) -> dict[str, Any]:
    """Return the statistics of a cut for the manifest."""
    return {
        "cut": cut.value,
        "tie_count": cut.tie_count,
        "num_scored": cut.num_scored,
        "num_missing": cut.num_missing,
    }


def floor_count(fraction: float, total: int) -> int:
    """Return `floor(fraction * total)` with the fraction as the decimal number in the recipe.

    In binary floating point 0.29 * 100 is 28.999…, which would lose a sample to rounding.
    """
    return int(Decimal(repr(fraction)) * total)


def column_of(scores: Scores, column: str) -> NDArray[Any]:
    """Return a column.

    Raises:
        DataError: There is no column of this name.
    """
    if column not in scores:
        raise DataError(
            f"no score column {column!r}; the score run has {', '.join(sorted(scores))}"
        )
    return scores[column]


def numbers_of(scores: Scores, column: str) -> NDArray[np.floating]:
    """Return a column of numbers.

    Raises:
        DataError: There is no column of this name, or it has another type.
    """
    values_N = column_of(scores, column)
    if values_N.ndim != 1 or values_N.dtype.kind not in "fiub":
        kind = "vectors" if values_N.ndim > 1 else "text"
        raise DataError(f"column {column!r} holds {kind}, expected numbers to rank or compare")
    return values_N


def texts_of(scores: Scores, column: str) -> NDArray[np.object_]:
    """Return a column of texts.

    Raises:
        DataError: There is no column of this name, or it has another type.
    """
    values_N = column_of(scores, column)
    if values_N.ndim != 1 or values_N.dtype.kind not in "OU":
        raise DataError(
            f"column {column!r} holds {'vectors' if values_N.ndim > 1 else 'numbers'}, expected"
            " text, such as a name; numbers are chosen by `threshold`"
        )
    return values_N


def is_missing(values_N: NDArray[Any]) -> NDArray[np.bool_]:
    """Return True where a column has no value; see `Scores`."""
    if values_N.dtype.kind in "OU":
        empty_N: NDArray[np.bool_] = values_N == ""
        return empty_N
    if values_N.dtype.kind != "f":
        return np.zeros(len(values_N), dtype=bool)
    missing: NDArray[np.bool_] = np.isnan(values_N)
    missing_N: NDArray[np.bool_] = np.any(missing, axis=tuple(range(1, missing.ndim)))
    return missing_N


def take_rows(
    scores: Scores, mask_N: NDArray[np.bool_], columns: Iterable[str]
) -> dict[str, NDArray[Any]]:
    """Return the given columns of the samples where the mask is True."""
    return {name: column_of(scores, name)[mask_N] for name in columns}
