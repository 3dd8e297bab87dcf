"""All parallelisms: importing this module fills the registry."""

from __future__ import annotations

from consomme.train.parallel import ddp_fsdp2, deepspeed
from consomme.train.parallel.strategy import PARALLELISMS

__all__ = ["PARALLELISMS", "ddp_fsdp2", "deepspeed"]
