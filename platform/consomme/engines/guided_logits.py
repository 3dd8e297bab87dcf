"""The formula of contrastive region guidance, for decoding and for scoring.

Source: CRG, arXiv 2403.02325.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Shapes: V vocabulary.


def guided_logits(plain: Tensor, masked: Tensor, alpha: float) -> Tensor:
    """Return (1 + alpha) a - alpha b in float32; tokens that a forbids stay forbidden.

    Args:
        plain: Logits a given the images, (..., V).
        masked: Logits b given the masked images.
        alpha: Strength.
    """
    a, b = plain.float(), masked.float()
    # Minus infinity minus itself is no number.
    return torch.where(a == -torch.inf, a, (1 + alpha) * a - alpha * b)
