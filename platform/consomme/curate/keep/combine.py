"""Keep policies made of others: in every stratum, all of some, any of some, one after the other.

The one decision: policies within are asked as if theirs were the only samples, so each stays exact
and global over what it is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError, RecipeError
from consomme.base.schema import strategy
from consomme.curate.keep.policy import (
    KEEP_POLICIES,
    REGISTRY,
    Chunks,
    Decision,
    Edge,
    FromChunks,
    HasEdges,
    KeepPolicy,
    Mask,
    Scores,
    column_of,
    some_of,
)

# Shapes: N samples.
Stratify = Callable[[Scores], NDArray[Any]]
"""Names the stratum of each sample, given its columns."""

MAX_STRATA = 1000
"""More strata than this are a mistake, such as a column of ids."""


@dataclass(frozen=True, kw_only=True)
class Strata:
    """A decision for each stratum."""

    strata: Stratify
    decisions: Mapping[Any, Decision]
    columns: tuple[str, ...]

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say for each sample whether it stays; who is in none of the strata does not."""
        kept_N = np.zeros(len(hash_N), dtype=bool)
        stratum_N = self.strata(scores)
        for name in set(stratum_N.tolist()) & set(self.decisions):
            part_N = stratum_N == name
            some = some_of(scores, part_N, self.columns)
            kept_N[part_N] = self.decisions[name].mask(some, hash_N[part_N])
        return kept_N

    def describe(self) -> dict[str, Any]:
        """Return what each stratum says, and sums."""
        stats = {str(name): decision.describe() for name, decision in self.decisions.items()}
        return {
            "strata": stats,
            "num_scored": sum(one.get("num_scored", 0) for one in stats.values()),
            "num_missing": sum(one.get("num_missing", 0) for one in stats.values()),
        }


def decide_strata(
    chunks: Chunks, strata: Stratify, names: Iterable[Any], policy: KeepPolicy
) -> Strata:
    """Let a policy decide in each stratum: a few walks per stratum.

    Args:
        chunks: All samples.
        strata: Names the stratum of each sample, given its columns.
        names: The strata to decide in, in order.
        policy: Decides.
    """

    def only(name: object) -> Chunks:
        def walk() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
            for scores, hash_N in chunks():
                part_N = strata(scores) == name
                yield some_of(scores, part_N, policy.columns), hash_N[part_N]

        return walk

    decisions = {name: policy.decide(only(name)) for name in names}
    return Strata(strata=strata, decisions=decisions, columns=policy.columns)


def count_strata(chunks: Chunks, strata: Stratify, what: str) -> dict[Any, int]:
    """Count the samples of each stratum, in the order of their names.

    Raises:
        DataError: There are more than a column of names has.
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
class PerStratum(FromChunks):
    """Let a policy decide in each stratum by itself: the best fifth of every source, not of all.

    Without it a filter that prefers one kind of data takes it all from there.
    """

    by: str = "source"
    """Column of names, such as `source`, or of numbers, cut at `edges`; samples without a number
    are a stratum of their own."""

    edges: tuple[float, ...] = ()
    """Where a column of numbers is cut into strata: `[8, 32]` makes three of `num_tokens`."""

    keep: dict[str, Any] = strategy(REGISTRY, default={"name": "lowest_fraction"})
    """Which samples of a stratum stay."""

    def __post_init__(self) -> None:
        """Check the edges, and the policy within."""
        if list(self.edges) != sorted(set(self.edges)):
            raise RecipeError(f"edges: found {list(self.edges)}, expected ascending numbers")
        KEEP_POLICIES.build(self.keep, "keep")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of the strata and those of the policy within."""
        return (self.by, *KEEP_POLICIES.build(self.keep, "keep").columns)

    def decide(self, chunks: Chunks) -> Decision:
        """Find the strata, then decide in each: a few walks per stratum."""
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
class _Joint:
    decisions: tuple[Decision, ...]
    all_must: bool

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        masks = [decision.mask(scores, hash_N) for decision in self.decisions]
        join = np.logical_and if self.all_must else np.logical_or
        kept: NDArray[np.bool_] = join.reduce(masks)
        return kept

    def describe(self) -> dict[str, Any]:
        return _describe_parts(self.decisions)

    def edges(self) -> tuple[Edge, ...]:
        return _edges_of(self.decisions, all_must=self.all_must)


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    steps: tuple[tuple[tuple[str, ...], Decision], ...]
    """Each with the columns it reads."""

    def mask(self, scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        kept_N = np.ones(len(hash_N), dtype=bool)
        for columns, decision in self.steps:
            some = scores if kept_N.all() else some_of(scores, kept_N, columns)
            kept_N[kept_N] = decision.mask(some, hash_N[kept_N])
        return kept_N

    def describe(self) -> dict[str, Any]:
        return _describe_parts([decision for _, decision in self.steps])

    def edges(self) -> tuple[Edge, ...]:
        return _edges_of([decision for _, decision in self.steps], all_must=True)


def _describe_parts(decisions: Sequence[Decision]) -> dict[str, Any]:
    return {"parts": [decision.describe() for decision in decisions]}


def _edges_of(decisions: Sequence[Decision], *, all_must: bool) -> tuple[Edge, ...]:
    """Return the edges of all, each among the samples for which it makes the difference."""
    edges = []
    for k, decision in enumerate(decisions):
        if isinstance(decision, HasEdges):
            others = [*decisions[:k], *decisions[k + 1 :]]
            for edge in decision.edges():
                masks = [other.mask for other in others]
                edges.append(replace(edge, among=_undecided(masks, edge.among, all_must)))
    return tuple(edges)


def _undecided(masks: Sequence[Mask], among: Mask | None, all_must: bool) -> Mask:
    def mask(scores: Scores, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        open_N = np.ones(len(hash_N), dtype=bool) if among is None else among(scores, hash_N)
        for other in masks:
            open_N &= other(scores, hash_N) == all_must
        return open_N

    return mask


def _build(nodes: tuple[dict[str, Any], ...]) -> list[KeepPolicy]:
    if not nodes:
        raise RecipeError("policies: found none, expected at least one {name: …}")
    return [KEEP_POLICIES.build(node, f"policies.{k}") for k, node in enumerate(nodes)]


class _JointPolicy(FromChunks):
    """What all_of, any_of and in_turn have in common."""

    policies: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        """Check the policies."""
        _build(self.policies)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of all of them."""
        found = (name for policy in _build(self.policies) for name in policy.columns)
        return tuple(dict.fromkeys(found))


class _EachOfAll(_JointPolicy):
    """Policies that decide about all samples, each by itself."""

    all_must: ClassVar[bool]

    def decide(self, chunks: Chunks) -> Decision:
        """Let each decide."""
        decisions = tuple(policy.decide(chunks) for policy in _build(self.policies))
        return _Joint(decisions=decisions, all_must=self.all_must)


@KEEP_POLICIES.register("all_of")
@dataclass(frozen=True, kw_only=True)
class AllOf(_EachOfAll):
    """Keep what every one of some policies keeps, each deciding about all samples."""

    all_must: ClassVar[bool] = True

    policies: tuple[dict[str, Any], ...] = strategy(REGISTRY)
    """The policies."""


@KEEP_POLICIES.register("any_of")
@dataclass(frozen=True, kw_only=True)
class AnyOf(_EachOfAll):
    """Keep what at least one of some policies keeps, each deciding about all samples."""

    all_must: ClassVar[bool] = False

    policies: tuple[dict[str, Any], ...] = strategy(REGISTRY)
    """The policies."""


@KEEP_POLICIES.register("in_turn")
@dataclass(frozen=True, kw_only=True)
class InTurn(_JointPolicy):
    """Let policies decide one after the other, each among what those before it keep.

    `all_of` takes the best fifth of everything and leaves out the copies in it; `in_turn` leaves
    out the copies and takes the best fifth of the rest.
    """

    policies: tuple[dict[str, Any], ...] = strategy(REGISTRY)
    """The policies, in order."""

    def decide(self, chunks: Chunks) -> Decision:
        """Let each decide: a few walks for each."""
        so_far = _Sequence(steps=())
        for policy in _build(self.policies):
            decision = policy.decide(_kept_by(so_far, chunks, policy.columns))
            so_far = _Sequence(steps=(*so_far.steps, (policy.columns, decision)))
        return so_far


def _kept_by(before: _Sequence, chunks: Chunks, columns: Iterable[str]) -> Chunks:
    def walk() -> Iterable[tuple[Scores, NDArray[np.uint64]]]:
        for scores, hash_N in chunks():
            kept_N = before.mask(scores, hash_N)
            if kept_N.all():
                # Nothing is copied, and vectors stay on the disk.
                yield scores, hash_N
                continue
            yield some_of(scores, kept_N, columns), hash_N[kept_N]

    return walk
