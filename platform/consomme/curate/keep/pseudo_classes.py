"""Active selection as in PCB: a shortlist of informative samples, balanced over pseudo-classes.

The paper repeatedly takes one sample of the class with the fewest selected. The same quotas follow
from a water level up to which all classes are filled, so a budget of millions takes one pass over
the shortlist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.bounds import NonNegativeInt
from consomme.base.checked import rule
from consomme.base.errors import DataError
from consomme.base.hashing import hash_ids, mix_hash
from consomme.base.schema import strategy
from consomme.curate.keep.balance import classes_of
from consomme.curate.keep.kcenter import SelectedIds
from consomme.curate.keep.policy import KEEP_POLICIES, REGISTRY, ChunkedPolicy, Chunks, Decision

# Shapes: N samples of a chunk, M shortlisted samples of a class.


def class_quotas(counts: Mapping[str, int], budget: int, seed: int) -> dict[str, int]:
    """Return how many samples to take of each class, as evenly as possible.

    Args:
        counts: Samples of each class.
        budget: Samples to take in all, if there are that many.
        seed: Breaks ties between classes, together with the hashes of their names.

    Returns:
        For each class at most its count; classes with enough samples differ by at most one.
    """
    low, high = 0, max(counts.values(), default=0)
    while low < high:
        level = (low + high + 1) // 2
        if sum(min(count, level) for count in counts.values()) <= budget:
            low = level
        else:
            high = level - 1
    quotas = {name: min(count, low) for name, count in counts.items()}
    rest = budget - sum(quotas.values())
    larger = [name for name, count in counts.items() if count > low]
    tie_break = {name: int(mix_hash(hash_ids([name]), seed)[0]) for name in larger}
    for name in sorted(larger, key=lambda name: (tie_break[name], name))[: max(0, rest)]:
        quotas[name] += 1
    return quotas


@KEEP_POLICIES.register("pseudo_class_balanced")
@dataclass(frozen=True, kw_only=True)
class PseudoClassBalanced(ChunkedPolicy):
    """Select among the most informative samples, evenly over the classes that a model predicts.

    As if, repeatedly, the class with the fewest selected samples gave one of its shortlisted
    samples, drawn by seeded hashes of ids; a class without further samples is skipped. Samples of
    unknown class are not selected. The shortlist takes about 50 bytes of memory per sample.

    Source: Bang et al., "Active Prompt Learning in Vision Language Models" (PCB), CVPR 2024: the
    shortlist is a tenth of the data by entropy, coreset or BADGE.
    """

    samples: NonNegativeInt
    """Number to select; fewer, if the shortlist has fewer."""

    shortlist: dict[str, Any] = strategy(
        REGISTRY,
        default={"name": "highest_fraction", "column": "tags.class_entropy", "fraction": 0.1},
    )
    """Selects the informative samples: any keep policy, such as `k_center` or `badge`."""

    by: str = "tags.class"
    """Column of pseudo-classes: texts or integers."""

    seed: int = 0
    """Another seed draws other samples of the shortlist."""

    @rule
    def _shortlist_policy(self) -> Iterator[str]:
        yield from KEEP_POLICIES.problems(self.shortlist, "shortlist")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column of classes and those of the inner policy."""
        return (self.by, *KEEP_POLICIES.build(self.shortlist, "shortlist").columns)

    def decide(self, chunks: Chunks) -> Decision:
        """Let the inner policy decide, then make one pass over what it keeps."""
        shortlist = KEEP_POLICIES.build(self.shortlist, "shortlist").decide(chunks)
        by_class: dict[str, list[NDArray[np.uint64]]] = {}
        unknown = 0
        for scores, hash_N in chunks():
            kept_N = shortlist.mask(scores, hash_N)
            class_N = classes_of({self.by: scores[self.by][kept_N]}, self.by)
            kept_hash_N = hash_N[kept_N]
            for name in set(class_N.tolist()):
                part_N = kept_hash_N[class_N == name]
                if name:
                    by_class.setdefault(name, []).append(part_N)
                else:
                    unknown += len(part_N)
        if not by_class:
            raise DataError(
                f"pseudo_class_balanced: the shortlist {self.shortlist} has no sample with a"
                f" {self.by}; make it larger, or look at that column"
            )
        hashes = {name: np.concatenate(by_class[name]) for name in sorted(by_class)}
        counts = {name: len(hash_M) for name, hash_M in hashes.items()}
        quotas = class_quotas(counts, self.samples, self.seed)
        selected = [
            hash_M[np.argsort(mix_hash(hash_M, self.seed))][: quotas[name]]
            for name, hash_M in hashes.items()
        ]
        return SelectedIds.of(
            np.concatenate(selected),
            {
                "num_scored": sum(counts.values()),
                "num_missing": unknown,
                "shortlist": shortlist.describe(),
                "classes": {name: [quotas[name], counts[name]] for name in hashes},
            },
        )
