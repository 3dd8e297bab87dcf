"""All ways to spread a model over ranks: whoever names this module has the registry whole."""

from __future__ import annotations

from consomme.train import torch_spread, zero
from consomme.train.spread import PARALLELISMS

__all__ = ["PARALLELISMS", "torch_spread", "zero"]
