"""The registry of tilings with every tiling imported; `plan` defines the interface."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from consomme.vision.tiling import grids, whole
from consomme.vision.tiling.plan import TILINGS, Tiling

__all__ = ["TILINGS", "grids", "tiling_of", "whole"]


def tiling_of(node: Mapping[str, Any], *, is_split: bool | None = None) -> Tiling:
    """Return the tiling that a processor or a recipe names; it is built once in a process.

    Args:
        node: `{name: …, field: …}`.
        is_split: Whether a tiling that splits splits every picture, or none; None for what it says.

    Raises:
        RecipeError: There is no such tiling, or a field is wrong.
    """
    return _built(json.dumps(node, sort_keys=True), is_split)


@lru_cache(maxsize=64)
def _built(node: str, is_split: bool | None) -> Tiling:
    tiling = TILINGS.build(json.loads(node), "tiling")
    return tiling if is_split is None else tiling.split_or_not(is_split=is_split)
