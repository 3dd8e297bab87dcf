"""What a recipe decides about hashed samples; the run writes it, the preview shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import Duplicates, NearDuplicateLimits
from consomme.curate.dedup.hash_tables import Index
from consomme.pipelines.dedup.copies import SampleHashes, decide, read_scores
from consomme.pipelines.dedup.recipe import DedupRecipe

# Shapes: R samples by rank.


@dataclass(frozen=True, kw_only=True)
class DedupDecision:
    """Which samples stay, and what the others are copies of."""

    order_R: Index  # noqa: N815
    """Index of the sample at each rank."""

    duplicates: Duplicates
    """By rank."""

    num_unscored: int
    """Samples without a score, if scores decide."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of all samples, kept samples, and copies by kind."""
        total = len(self.order_R)
        kept, exact = int(self.duplicates.is_kept_N.sum()), int(self.duplicates.is_exact_N.sum())
        return {"samples": total, "kept": kept, "exact": exact, "near": total - kept - exact}


def decide_by(
    recipe: DedupRecipe, hashed: SampleHashes, thumbnails: Callable[[Index], ThumbnailTable]
) -> DedupDecision:
    """Decide as a recipe says.

    Args:
        recipe: The recipe.
        hashed: All samples.
        thumbnails: Opens the thumbnails of samples, by index.

    Raises:
        DataError: The scores are of other data.
    """
    score_N = None
    if recipe.scores is not None and recipe.best_by is not None:
        score_N = read_scores(recipe.scores, recipe.best_by, hashed)
    limits = None
    if recipe.max_distance is not None:
        limits = NearDuplicateLimits(max_distance=recipe.max_distance, max_colour=recipe.max_colour)
    sign = -1 if recipe.best_is == "lowest" else 1
    order_R, duplicates = decide(
        hashed,
        None if score_N is None else sign * score_N,
        limits,
        flips=recipe.flips,
        thumbnails=thumbnails,
    )
    return DedupDecision(
        order_R=order_R,
        duplicates=duplicates,
        num_unscored=0 if score_N is None else int(np.isnan(score_N).sum()),
    )


def describe_best(recipe: DedupRecipe) -> str:
    """Say which copy is the best."""
    size = "largest picture, then most bytes"
    return f"{recipe.best_is} {recipe.best_by}, then {size}" if recipe.best_by else size
