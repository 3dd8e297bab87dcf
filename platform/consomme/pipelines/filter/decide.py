"""Apply a keep policy to the columns of a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.keep.policy import Boundary, HasBoundaries, KeepPolicy
from consomme.pipelines.filter.columns import ColumnStore
from consomme.storage.sidecar import ID_HASH


@dataclass(frozen=True, kw_only=True)
class PolicyDecision:
    """A policy's decision about all samples."""

    mask: Callable[..., NDArray[np.bool_]]
    """Maps columns and hashes of a chunk to its kept samples; called once per chunk, in order."""

    stats: dict[str, Any]
    """Statistics for the manifest."""

    boundaries: tuple[Boundary, ...] = ()
    """Where orders of samples were cut."""


def decide(policy: KeepPolicy, store: ColumnStore) -> PolicyDecision:
    """Apply a policy to all samples, in chunks if it can."""
    if hasattr(policy, "decide"):
        decision = policy.decide(store.chunks)
        boundaries = decision.boundaries() if isinstance(decision, HasBoundaries) else ()
        return PolicyDecision(mask=decision.mask, stats=decision.describe(), boundaries=boundaries)
    # A policy that only takes arrays gets whole columns.
    scores = {name: store.whole(name) for name in policy.columns}
    kept = policy(scores, store.whole(ID_HASH))
    stats = {
        "cut": kept.cut,
        "tie_count": kept.tie_count,
        "num_scored": kept.num_scored,
        "num_missing": kept.num_missing,
    }
    remaining_N = kept.mask_N

    def mask(_: object, hash_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        nonlocal remaining_N
        part, remaining_N = remaining_N[: len(hash_N)], remaining_N[len(hash_N) :]
        return part

    return PolicyDecision(mask=mask, stats=stats)
