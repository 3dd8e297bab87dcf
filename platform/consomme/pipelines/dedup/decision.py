"""What a recipe decides about hashed samples; the run writes it, the preview shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import Duplicates, NearDuplicateLimits
from consomme.curate.dedup.hash_tables import Index
from consomme.curate.dedup.samples import DroppedSamples, drop_samples
from consomme.pipelines.dedup.copies import SampleHashes, decide, read_scores
from consomme.pipelines.dedup.recipe import DedupRecipe

# Shapes: R pictures by rank; S samples with pictures by rank.


@dataclass(frozen=True, kw_only=True)
class DedupDecision:
    """Which samples stay, and what the pictures of the others are copies of."""

    order_R: Index  # noqa: N815
    """Index of the picture at each rank."""

    duplicates: Duplicates
    """Of pictures, by rank."""

    begin_S: Index  # noqa: N815
    """Rank of the first picture of each sample, ascending."""

    dropped: DroppedSamples

    num_bare: int
    """Samples without pictures, which stay."""

    num_unscored: int
    """Samples with pictures and without a score, if scores decide."""

    @property
    def is_kept_R(self) -> NDArray[np.bool_]:  # noqa: N802
        """True for the pictures of samples that stay."""
        sizes = np.diff(self.begin_S, append=len(self.order_R))
        return np.repeat(~self.dropped.is_dropped_S, sizes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of all samples, kept samples, and dropped ones by kind of their copies."""
        total = len(self.begin_S) + self.num_bare
        num_dropped = int(self.dropped.is_dropped_S.sum())
        exact = int(self.dropped.is_exact_S.sum())
        return {
            "samples": total,
            "kept": total - num_dropped,
            "exact": exact,
            "near": num_dropped - exact,
        }


def decide_by(
    recipe: DedupRecipe, hashed: SampleHashes, thumbnails: Callable[[Index], ThumbnailTable]
) -> DedupDecision:
    """Decide as a recipe says.

    Args:
        recipe: The recipe.
        hashed: All pictures.
        thumbnails: Opens the thumbnails of pictures, by index.

    Raises:
        DataError: The scores are of other data.
    """
    if recipe.keep_copies:
        return _all(hashed)
    score_S = None
    if recipe.scores is not None and recipe.best_by is not None:
        score_S = read_scores(recipe.scores, recipe.best_by, hashed)
    limits = None
    if recipe.max_distance is not None:
        limits = NearDuplicateLimits(max_distance=recipe.max_distance, max_colour=recipe.max_colour)
    sign = -1 if recipe.best_is == "lowest" else 1
    order_R, duplicates = decide(
        hashed,
        None if score_S is None else sign * score_S,
        limits,
        flips=recipe.flips,
        thumbnails=thumbnails,
    )
    begin_S = np.flatnonzero(hashed.image_N[order_R] == 0)
    return DedupDecision(
        order_R=order_R,
        duplicates=duplicates,
        begin_S=begin_S,
        dropped=drop_samples(begin_S, duplicates, recipe.drop_sample_if),
        num_bare=hashed.num_bare,
        num_unscored=0 if score_S is None else int(np.isnan(score_S).sum()),
    )


def _all(hashed: SampleHashes) -> DedupDecision:
    """Keep everything, in the order of the data."""
    number, samples = hashed.num_pictures, len(hashed.first_S)
    duplicates = Duplicates(
        representative_N=np.arange(number),
        distance_N=np.zeros(number, np.uint8),
        is_exact_N=np.zeros(number, bool),
        difference_N=np.zeros(number, np.float32),
    )
    none_S = np.zeros(samples, bool)
    return DedupDecision(
        order_R=np.arange(number),
        duplicates=duplicates,
        begin_S=hashed.first_S,
        dropped=DroppedSamples(is_dropped_S=none_S, is_exact_S=none_S, num_inside=0),
        num_bare=hashed.num_bare,
        num_unscored=0,
    )


def describe_best(recipe: DedupRecipe, *, is_plain: bool) -> str:
    """Say which copy is the best; `is_plain` if every sample has one picture."""
    size = "largest picture, then most bytes"
    if not is_plain:
        size = "most pictures, then most pixels, then most bytes"
    return f"{recipe.best_is} {recipe.best_by}, then {size}" if recipe.best_by else size


def many_pictures(
    recipe: DedupRecipe, hashed: SampleHashes, decision: DedupDecision
) -> dict[str, Any]:
    """Return what there is to say if samples have none or several pictures; else nothing."""
    if hashed.is_plain:
        return {}
    return {
        "pictures": hashed.num_pictures,
        "without_pictures": hashed.num_bare,
        "copies_inside": decision.dropped.num_inside,
        "drop_sample_if": recipe.drop_sample_if,
    }
