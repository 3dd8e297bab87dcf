"""The second view of a request under contrastive region guidance: its images without a region.

Source: CRG, arXiv 2403.02325.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What a request is compared with: the next token is that of (1 + alpha) a - alpha b.

    Here a are the model's logits given the images, and b those given the masked images, after the
    same text.
    """

    alpha: float
    """Strength; 0 is no guidance, the paper has 1."""

    images: tuple[Image.Image, ...] = field(repr=False, compare=False)
    """Aligned with the images of the request; one without a masked region is the same object."""

    def __post_init__(self) -> None:
        """Check the strength."""
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha: found {self.alpha}, expected a number from 0")


def effective(contrast: Contrast | None, images: Sequence[Image.Image]) -> Contrast | None:
    """Return the contrast of a request; None if it would change nothing.

    Without strength or without a masked image, both branches are equal, so the model runs as it
    does without guidance, bit for bit.

    Raises:
        ValueError: It has other images than the request.
    """
    if contrast is None:
        return None
    if [image.size for image in contrast.images] != [image.size for image in images]:
        raise ValueError(
            f"found {len(contrast.images)} masked images of {len(images)}, or of other sizes;"
            " expected each image of the request, masked or as it is"
        )
    pairs = zip(contrast.images, images, strict=True)
    return contrast if contrast.alpha and any(one is not other for one, other in pairs) else None


NEEDS_LOGITS = (
    "contrastive region guidance combines the logits of two branches at each token, which"
    " {engine} does not give; use the engine {{name: transformers}}, or leave guidance out"
)
"""Message of an engine that cannot be guided."""


DIFFERENT_TOKENS = (
    "the masked image has other tokens than the image ({masked} and {plain} in all), so the two"
    " branches cannot be compared token by token; the model's processor looks at what is on an"
    " image, and cannot be guided"
)
"""Message of a model whose tokens depend on the content of an image."""
