"""Keep policies that combine others: per stratum, all of, any of, one after the other, some.

An inner policy sees only the samples that it decides about, so its decision is exact and global
over those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.checked import rule
from consomme.base.errors import DataError
from consomme.base.schema import strategy
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    REGISTRY,
    Boundary,
    ChunkedPolicy,
    Chunks,
    Decision,
    HasBoundaries,
    KeepPolicy,
    Mask,
    Scores,
    column_of,
    is_missing,
    take_rows,
)

# Shapes: N samples.
Stratify = Callable[[Scores], NDArray[Any]]
"""Computes the stratum of each sample from its columns."""

MAX_STRATA = 1000
"""More strata than this are taken for a mistake, such as a column of ids."""


@dataclass(frozen=True, kw_only=True)
class StratifiedDecision:
    """One decision per stratum."""

    strata: Stratify
    decisions: Mapping[Any, Decision]
    columns: tuple[str, ...]

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return True for each sample that is kept; samples in no stratum are dropped."""
        kept_N = np.zeros(len(hash_N), dtype=bool)
        stratum_N = self.strata(scores)
        for name in set(stratum_N.tolist()) & set(self.decisions):
            part_N = stratum_N == name
            columns = take_rows(scores, part_N, self.columns)
            kept_N[part_N] = self.decisions[name].mask(columns, hash_N[part_N])
        return kept_N

    def describe(self) -> dict[str, Any]:
        """Return the statistics of each stratum, and sums."""
        stats = {str(name): decision.describe() for name, decision in self.decisions.items()}
        return {
            "strata": stats,
            "num_scored": sum(one.get("num_scored", 0) for one in stats.values()),
            "num_missing": sum(one.get("num_missing", 0) for one in stats.values()),
        }


def decide_strata(
    chunks: Chunks, strata: Stratify, names: Iterable[Any], policy: KeepPolicy
) -> StratifiedDecision:
    """Apply a policy to each stratum separately: a few passes per stratum.

    Args:
        chunks: All samples.
        strata: Computes the stratum of each sample from its columns.
        names: The strata to decide in, in order.
        policy: The policy to apply.
    """

    def chunks_of(name: object) -> Chunks:
        def filtered() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
            for scores, hash_N in chunks():
                part_N = strata(scores) == name
                yield take_rows(scores, part_N, policy.columns), hash_N[part_N]

        return filtered

    decisions = {name: policy.decide(chunks_of(name)) for name in names}
    return StratifiedDecision(strata=strata, decisions=decisions, columns=policy.columns)


def count_strata(chunks: Chunks, strata: Stratify, what: str) -> dict[Any, int]:
    """Count the samples of each stratum, in the order of their names.

    Raises:
        DataError: There are more than `MAX_STRATA`.
    """
    counts: Counter[Any] = Counter()
    for scores, _ in chunks():
        counts.update(strata(scores).tolist())
        if len(counts) > MAX_STRATA:
            raise DataError(
                f"{what} has more than {MAX_STRATA} different values, such as"
                f" {min(counts)!r}; take a column of few, or cut numbers at edges"
            )
    return dict(sorted(counts.items()))


@KEEP_POLICIES.register("per_stratum")
@dataclass(frozen=True, kw_only=True)
class PerStratum(ChunkedPolicy):
    """Apply a policy to each stratum separately: the best fifth of every source, not of all data.

    Without stratification, a filter that prefers one kind of data selects mostly from it.
    """

    by: str = "source"
    """Column of names, such as `source`, or of numbers, binned at `edges`; samples without a value
    form a stratum of their own."""

    edges: tuple[float, ...] = ()
    """Bin edges of a numeric column: `[8, 32]` makes three strata of `num_tokens`."""

    keep: dict[str, Any] = strategy(REGISTRY, default={"name": "lowest_fraction"})
    """The policy that selects within a stratum."""

    @rule
    def _edges_ascend(self) -> Iterator[str]:
        if list(self.edges) != sorted(set(self.edges)):
            yield f"edges: found {list(self.edges)}, expected ascending numbers"

    @rule
    def _policy(self) -> Iterator[str]:
        yield from KEEP_POLICIES.problems(self.keep, "keep")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of the strata and those of the inner policy."""
        return (self.by, *KEEP_POLICIES.build(self.keep, "keep").columns)

    def decide(self, chunks: Chunks) -> Decision:
        """Find the strata, then decide in each: a few passes per stratum."""
        names = count_strata(chunks, self._strata, f"per_stratum: {self.by!r}")
        return decide_strata(chunks, self._strata, names, KEEP_POLICIES.build(self.keep, "keep"))

    def _strata(self, scores: Scores) -> NDArray[Any]:
        values_N = column_of(scores, self.by)
        if self.edges:
            return np.where(np.isnan(values_N), -1, np.digitize(values_N, self.edges))
        if values_N.dtype.kind == "f":
            raise DataError(
                f"per_stratum: {self.by!r} is a column of numbers; say where to cut it, as in"
                " edges: [8, 32]"
            )
        return values_N


@dataclass(frozen=True, kw_only=True)
class _KeepMissingDecision:
    column: str
    decision: Decision
    columns: tuple[str, ...]

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        part_N = self.has_value(scores, hash_N)
        kept_N = ~part_N
        columns = take_rows(scores, part_N, self.columns)
        kept_N[part_N] = self.decision.mask(columns, hash_N[part_N])
        return kept_N

    def has_value(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        del hash_N
        return ~is_missing(column_of(scores, self.column))

    def describe(self) -> dict[str, Any]:
        return self.decision.describe()

    def boundaries(self) -> tuple[Boundary, ...]:
        if not isinstance(self.decision, HasBoundaries):
            return ()
        return tuple(
            replace(one, among=_where_decisive([self.has_value], one.among, require_all=True))
            for one in self.decision.boundaries()
        )


@KEEP_POLICIES.register("keep_missing")
@dataclass(frozen=True, kw_only=True)
class KeepMissing(ChunkedPolicy):
    """Keep every sample without a value in a column; let a policy decide about the others.

    For texts without pictures: they have no `image_gain`, so a policy that ranks by it keeps none
    of them.
    """

    column: str = "image_gain"
    """Column in which these samples have no number, text or vector."""

    keep: dict[str, Any] = strategy(REGISTRY)
    """The policy that decides about all samples with a value there."""

    @rule
    def _policy(self) -> Iterator[str]:
        yield from KEEP_POLICIES.problems(self.keep, "keep")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column and those of the inner policy."""
        names = (self.column, *KEEP_POLICIES.build(self.keep, "keep").columns)
        return tuple(dict.fromkeys(names))

    def decide(self, chunks: Chunks) -> Decision:
        """Let the inner policy decide about the samples with a value."""
        policy = KEEP_POLICIES.build(self.keep, "keep")

        def with_value() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
            for scores, hash_N in chunks():
                part_N = ~is_missing(column_of(scores, self.column))
                yield take_rows(scores, part_N, policy.columns), hash_N[part_N]

        decision = policy.decide(with_value)
        return _KeepMissingDecision(column=self.column, decision=decision, columns=policy.columns)


@dataclass(frozen=True, kw_only=True)
class _CombinedDecision:
    decisions: tuple[Decision, ...]
    require_all: bool

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        masks = [decision.mask(scores, hash_N) for decision in self.decisions]
        join = np.logical_and if self.require_all else np.logical_or
        kept: NDArray[np.bool_] = join.reduce(masks)
        return kept

    def describe(self) -> dict[str, Any]:
        return _describe_parts(self.decisions)

    def boundaries(self) -> tuple[Boundary, ...]:
        return _boundaries_of(self.decisions, require_all=self.require_all)


@dataclass(frozen=True, kw_only=True)
class _SequentialDecision:
    steps: tuple[tuple[tuple[str, ...], Decision], ...]
    """(columns that the policy reads, its decision), in order."""

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        kept_N = np.ones(len(hash_N), dtype=bool)
        for columns, decision in self.steps:
            rest = scores if kept_N.all() else take_rows(scores, kept_N, columns)
            kept_N[kept_N] = decision.mask(rest, hash_N[kept_N])
        return kept_N

    def describe(self) -> dict[str, Any]:
        return _describe_parts([decision for _, decision in self.steps])

    def boundaries(self) -> tuple[Boundary, ...]:
        return _boundaries_of([decision for _, decision in self.steps], require_all=True)


def _describe_parts(decisions: Sequence[Decision]) -> dict[str, Any]:
    return {"parts": [decision.describe() for decision in decisions]}


def _boundaries_of(decisions: Sequence[Decision], *, require_all: bool) -> tuple[Boundary, ...]:
    """Return the cuts of all decisions, each restricted to the samples for which it is decisive."""
    boundaries = []
    for k, decision in enumerate(decisions):
        if isinstance(decision, HasBoundaries):
            others = [*decisions[:k], *decisions[k + 1 :]]
            for boundary in decision.boundaries():
                masks = [other.mask for other in others]
                among = _where_decisive(masks, boundary.among, require_all)
                boundaries.append(replace(boundary, among=among))
    return tuple(boundaries)


def _where_decisive(masks: Sequence[Mask], among: Mask | None, require_all: bool) -> Mask:
    """Select the samples on which one more decision changes the result of the others."""

    def mask(scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        decisive_N = np.ones(len(hash_N), dtype=bool) if among is None else among(scores, hash_N)
        for other in masks:
            decisive_N &= other(scores, hash_N) == require_all
        return decisive_N

    return mask


def _build(nodes: tuple[dict[str, Any], ...]) -> list[KeepPolicy]:
    return [KEEP_POLICIES.build(node, f"policies.{k}") for k, node in enumerate(nodes)]


class _CombinedPolicy(ChunkedPolicy):
    """Base of all_of, any_of and in_turn."""

    policies: tuple[dict[str, Any], ...]

    @rule
    def _has_policies(self) -> Iterator[str]:
        if not self.policies:
            yield "policies: found none, expected at least one {name: …}"
        for k, node in enumerate(self.policies):
            yield from KEEP_POLICIES.problems(node, f"policies.{k}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of all inner policies."""
        names = (name for policy in _build(self.policies) for name in policy.columns)
        return tuple(dict.fromkeys(names))


class _IndependentPolicy(_CombinedPolicy):
    """Base of combinations whose inner policies each decide about all samples."""

    require_all: ClassVar[bool]

    def decide(self, chunks: Chunks) -> Decision:
        """Let each inner policy decide about all samples."""
        decisions = tuple(policy.decide(chunks) for policy in _build(self.policies))
        return _CombinedDecision(decisions=decisions, require_all=self.require_all)


@KEEP_POLICIES.register("all_of")
@dataclass(frozen=True, kw_only=True)
class AllOf(_IndependentPolicy):
    """Keep the intersection: what every inner policy keeps, each deciding about all samples."""

    require_all: ClassVar[bool] = True

    policies: tuple[dict[str, Any], ...] = strategy(REGISTRY)
    """The inner policies."""


@KEEP_POLICIES.register("any_of")
@dataclass(frozen=True, kw_only=True)
class AnyOf(_IndependentPolicy):
    """Keep the union: what any inner policy keeps, each deciding about all samples."""

    require_all: ClassVar[bool] = False

    policies: tuple[dict[str, Any], ...] = strategy(REGISTRY)
    """The inner policies."""


@KEEP_POLICIES.register("in_turn")
@dataclass(frozen=True, kw_only=True)
class InTurn(_CombinedPolicy):
    """Apply policies one after the other, each to what those before it keep.

    `all_of` takes the best fifth of everything and then leaves out its duplicates; `in_turn` leaves
    out the duplicates first and takes the best fifth of the rest.
    """

    policies: tuple[dict[str, Any], ...] = strategy(REGISTRY)
    """The inner policies, in order."""

    def decide(self, chunks: Chunks) -> Decision:
        """Let each inner policy decide in turn: a few passes for each."""
        so_far = _SequentialDecision(steps=())
        for policy in _build(self.policies):
            decision = policy.decide(_kept_by(so_far, chunks, policy.columns))
            so_far = _SequentialDecision(steps=(*so_far.steps, (policy.columns, decision)))
        return so_far


def _kept_by(before: _SequentialDecision, chunks: Chunks, columns: Iterable[str]) -> Chunks:
    def filtered() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
        for scores, hash_N in chunks():
            kept_N = before.mask(scores, hash_N)
            if kept_N.all():
                # No copy: vectors stay on disk.
                yield scores, hash_N
                continue
            yield take_rows(scores, kept_N, columns), hash_N[kept_N]

    return filtered
