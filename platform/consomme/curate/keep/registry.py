"""All keep policies: whoever names this module has the registry whole.

Each policy is exact, global, and the same however the samples are cut into parts; how it is asked
is in `keep`.
"""

from __future__ import annotations

from consomme.curate.keep import (
    active,
    balance,
    combine,
    ensemble,
    limits,
    pseudo_classes,
    ranking,
)
from consomme.curate.keep.policy import KEEP_POLICIES

__all__ = [
    "KEEP_POLICIES",
    "active",
    "balance",
    "combine",
    "ensemble",
    "limits",
    "pseudo_classes",
    "ranking",
]
