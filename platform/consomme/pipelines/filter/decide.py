"""Apply a keep policy to joined columns: which rows of each unit stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.keep.policy import Edge, HasEdges, KeepPolicy
from consomme.pipelines.filter.columns import ColumnStore
from consomme.storage.sidecar import ID_HASH


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a policy has decided about all samples."""

    mask: Callable[..., NDArray[np.bool_]]
    """Says for columns and hashes of a part which of its samples stay; asked once, in order."""

    stats: dict[str, Any]
    """What the manifest says."""

    edges: tuple[Edge, ...] = ()
    """Where orders of samples were cut."""


def decide(policy: KeepPolicy, walk: ColumnStore) -> Decided:
    """Let a policy decide, in walks if it can."""
    if hasattr(policy, "decide"):
        decision = policy.decide(walk.chunks)
        edges = decision.edges() if isinstance(decision, HasEdges) else ()
        return Decided(mask=decision.mask, stats=decision.describe(), edges=edges)
    # A policy that only knows arrays gets them all.
    scores = {name: walk.whole(name) for name in policy.columns}
    kept = policy(scores, walk.whole(ID_HASH))
    stats = {
        "cut": kept.cut,
        "tie_count": kept.tie_count,
        "num_scored": kept.num_scored,
        "num_missing": kept.num_missing,
    }
    rest = kept.mask_N

    def mask(_: object, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        nonlocal rest
        part, rest = rest[: len(hash_N)], rest[len(hash_N) :]
        return part

    return Decided(mask=mask, stats=stats)
