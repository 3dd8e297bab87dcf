"""The registry of searchers with every searcher imported; `searchers` defines the interface."""

from __future__ import annotations

from consomme.sweep import forward_selection
from consomme.sweep.searchers import SEARCHERS

__all__ = ["SEARCHERS", "forward_selection"]
