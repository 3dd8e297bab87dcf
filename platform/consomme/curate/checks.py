"""Checks of numbers that are passed to library functions; fields of recipes have bounds."""

from __future__ import annotations

from consomme.base.errors import RecipeError


def check_fraction(fraction: float) -> None:
    """Check a fraction.

    Raises:
        RecipeError: It is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise RecipeError(f"fraction: found {fraction}, expected a share in [0, 1], such as 0.2")
