"""All ways to shard a model over ranks: whoever names this module has the registry whole."""

from __future__ import annotations

from consomme.train.parallel import ddp_fsdp2, deepspeed
from consomme.train.parallel.strategy import PARALLELISMS

__all__ = ["PARALLELISMS", "ddp_fsdp2", "deepspeed"]
