"""Active selection as in PCB: a shortlist of what is informative, evened out over pseudo-classes.

The one decision: "take from the least represented class, again and again" is worked out as a level
to which all classes are filled, so a budget of millions takes one pass over the shortlist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.hashing import hash_ids, mix_hash
from consomme.base.schema import strategy
from consomme.curate.checks import check_count
from consomme.curate.keep.balance import classes_of
from consomme.curate.keep.kcenter import Chosen
from consomme.curate.keep.policy import KEEP_POLICIES, REGISTRY, Chunks, Decision, FromChunks

# Shapes: N samples.


def fill(counts: Mapping[str, int], budget: int, seed: int) -> dict[str, int]:
    """Say how many samples each class gives if always the one that has given least gives one.

    Args:
        counts: Samples of each class.
        budget: How many are given in all, if there are as many.
        seed: Decides, with the hashes of their names, who of equals comes first.

    Returns:
        For each class at most its count; classes that have enough differ by at most one.
    """
    low, high = 0, max(counts.values(), default=0)
    while low < high:
        level = (low + high + 1) // 2
        if sum(min(count, level) for count in counts.values()) <= budget:
            low = level
        else:
            high = level - 1
    given = {name: min(count, low) for name, count in counts.items()}
    rest = budget - sum(given.values())
    more = [name for name, count in counts.items() if count > low]
    turn = {name: int(mix_hash(hash_ids([name]), seed)[0]) for name in more}
    for name in sorted(more, key=lambda name: (turn[name], name))[: max(0, rest)]:
        given[name] += 1
    return given


@KEEP_POLICIES.register("pseudo_class_balanced")
@dataclass(frozen=True, kw_only=True)
class PseudoClassBalanced(FromChunks):
    """Choose among the most informative samples, as many of each class a model takes them for.

    Again and again, the class of which fewest are chosen gives one of its shortlisted samples,
    drawn by the hashes of ids; a class that has no more is passed over. Samples of unknown class
    are not chosen. The shortlist takes about 50 bytes of memory per sample in it.

    Source: Bang et al., "Active Prompt Learning in Vision Language Models" (PCB), CVPR 2024: the
    shortlist is a tenth of the data by entropy, coreset or BADGE.
    """

    samples: int
    """The budget: how many to choose; fewer, if the shortlist has fewer."""

    shortlist: dict[str, Any] = strategy(
        REGISTRY,
        default={"name": "highest_fraction", "column": "tags.class_entropy", "fraction": 0.1},
    )
    """What is informative: any keep policy, such as `k_center` or `badge`."""

    by: str = "tags.class"
    """Column of pseudo-classes: texts or whole numbers."""

    seed: int = 0
    """Another seed, other samples of the shortlist."""

    def __post_init__(self) -> None:
        """Check the budget, and the policy within."""
        check_count(self.samples)
        KEEP_POLICIES.build(self.shortlist, "shortlist")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of classes and those of the policy within."""
        return (self.by, *KEEP_POLICIES.build(self.shortlist, "shortlist").columns)

    def decide(self, chunks: Chunks) -> Decision:
        """Let the policy within decide, then walk once over what it keeps."""
        shortlist = KEEP_POLICIES.build(self.shortlist, "shortlist").decide(chunks)
        found: dict[str, list[NDArray[np.uint64]]] = {}
        unknown = 0
        for scores, hash_N in chunks():
            kept_N = shortlist.mask(scores, hash_N)
            class_N = classes_of({self.by: scores[self.by][kept_N]}, self.by)
            some_N = hash_N[kept_N]
            for name in set(class_N.tolist()):
                part_N = some_N[class_N == name]
                if name:
                    found.setdefault(name, []).append(part_N)
                else:
                    unknown += len(part_N)
        if not found:
            raise DataError(
                f"pseudo_class_balanced: the shortlist {self.shortlist} has no sample with a"
                f" {self.by}; make it larger, or look at that column"
            )
        hashes = {name: np.concatenate(found[name]) for name in sorted(found)}
        given = fill({name: len(some) for name, some in hashes.items()}, self.samples, self.seed)
        chosen = [
            some[np.argsort(mix_hash(some, self.seed))][: given[name]]
            for name, some in hashes.items()
        ]
        return Chosen.of(
            np.concatenate(chosen),
            {
                "num_scored": sum(map(len, hashes.values())),
                "num_missing": unknown,
                "shortlist": shortlist.describe(),
                "classes": {name: [given[name], len(some)] for name, some in hashes.items()},
            },
        )
