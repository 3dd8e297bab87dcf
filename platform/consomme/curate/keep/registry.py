"""The registry of keep policies with every policy imported; `policy` defines the interface."""

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
