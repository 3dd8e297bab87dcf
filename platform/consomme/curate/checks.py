"""Check the numbers that several keep policies take."""

from __future__ import annotations

from consomme.base.errors import RecipeError


def check_fraction(fraction: float) -> None:
    """Refuse what is no share.

    Raises:
        RecipeError: It is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise RecipeError(f"fraction: found {fraction}, expected a share in [0, 1], such as 0.2")


def check_count(samples: int) -> None:
    """Refuse what is no number of samples.

    Raises:
        RecipeError: It is negative.
    """
    if samples < 0:
        raise RecipeError(f"samples: found {samples}, expected a number of samples, 0 or more")
