"""Rank texts, or regions of an image, by guided likelihood.

Source: CRG, arXiv 2403.02325: a text fits the image better the more likely it is under guidance,
and the region that a text means is the one that guides to it best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Turn
from consomme.engines.contrast import Contrast
from consomme.engines.scoring.requests import NotScored, ScoringEngine, ScoringRequest
from consomme.vision.masking import Mask, Region, masked_one_by_one


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One of what was ranked."""

    index: int
    """In the order in which they were given."""

    nll: float
    """Nats of the text under guidance."""


def rank_texts(
    scorer: ScoringEngine,
    turns: Sequence[Turn],
    texts: Sequence[str],
    images: Sequence[Image.Image],
    contrast: Contrast | None,
) -> list[Ranked]:
    """Rank answers to a conversation, the most likely one first; equal ones in their order.

    Args:
        scorer: An engine of transformers.
        turns: End with the user.
        texts: Possible answers.
        images: Of the conversation.
        contrast: What guides the model; None ranks without guidance.

    Raises:
        DataError: The model cannot be given one of them.
    """
    requests = [
        ScoringRequest(
            turns=(*turns, Turn(role="assistant", content=text)),
            images=tuple(images),
            scores_text=False,
            contrast=contrast,
        )
        for text in texts
    ]
    return _ranked(scorer, requests)


def rank_regions(
    scorer: ScoringEngine,
    turns: Sequence[Turn],
    image: Image.Image,
    regions: Sequence[Region],
    *,
    alpha: float = 1.0,
    mask: Mask = "blackout",
) -> list[Ranked]:
    """Rank proposals for what a text means, the best one first; equal ones in their order.

    Args:
        scorer: An engine of transformers.
        turns: A conversation about the image that ends with the text, as the assistant says it.
        image: The image.
        regions: The proposals, each of which is masked alone.
        alpha: Strength of the guidance, above 0.
        mask: How pixels are masked.

    Raises:
        DataError: The model cannot be given the conversation.
        ValueError: Without strength, all proposals are equal.
    """
    if not alpha:
        raise ValueError("alpha: found 0, with which all regions are equal; expected more")
    requests = [
        ScoringRequest(
            turns=tuple(turns),
            images=(image,),
            scores_text=False,
            contrast=Contrast(alpha=alpha, images=(view,)),
        )
        for view in masked_one_by_one(image, regions, mask=mask)
    ]
    return _ranked(scorer, requests)


def _ranked(scorer: ScoringEngine, requests: Sequence[ScoringRequest]) -> list[Ranked]:
    found = []
    for index, score in enumerate(scorer.score(requests)):
        if isinstance(score, NotScored):
            raise DataError(f"number {index} cannot be ranked: {score.reason}: {score.detail}")
        found.append(Ranked(index=index, nll=score.nll))
    return sorted(found, key=lambda one: one.nll)
