"""The registry of tilings with every tiling imported; `plan` defines the interface."""

from __future__ import annotations

from consomme.vision.tiling import grids, whole
from consomme.vision.tiling.plan import TILINGS

__all__ = ["TILINGS", "grids", "whole"]
