"""The key `storage` of every recipe: how a run treats the storage it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from consomme.base.bounds import PositiveFloat
from consomme.base.checked import Checked


@dataclass(frozen=True, kw_only=True)
class StorageOptions(Checked):
    """How patient a run is with its storage."""

    patience_s: PositiveFloat = 600.0
    """Seconds for which driver and workers retry while storage is away, throttles, or breaks
    connections. Refusals (credentials, a missing bucket, 403, 404) are never waited for."""
