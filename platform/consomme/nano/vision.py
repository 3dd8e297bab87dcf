"""Pre-train the vision encoder by classification, before it is connected to a language model.

The classes are the emoji name and what each quadrant holds. Attention queries over patches read
them out, so the patch features, which are the projector's input, have to carry the answer. A step
costs a fifth of a step of the whole VLM, and the vision encoder needs the most images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consomme.datasets import scenes

# Shapes: B images, N patches, W width.


class ReadOut(nn.Module):
    """Attention queries over patches: one for the emoji name, four for the quadrants."""

    def __init__(self, width: int, num_names: int, num_heads: int) -> None:
        """Create the queries and one linear head per kind of class."""
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.names = nn.Linear(width, num_names)
        sizes = (len(scenes.SHAPES), len(scenes.COLORS), len(scenes.SIZES), len(scenes.WORDS))
        self.parts = nn.ModuleList(nn.Linear(width, 1 + size) for size in sizes)

    def forward(self, patches_BNW: Tensor) -> Tensor:
        """Read one feature per query out of the patches: (B, 5, W)."""
        patches_BNW = self.norm(patches_BNW)
        queries = self.queries.expand(patches_BNW.shape[0], -1, -1)
        features: Tensor = self.attention(queries, patches_BNW, patches_BNW, need_weights=False)[0]
        return features

    def loss(self, patches_BNW: Tensor, names: Tensor, quadrants: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of names and of quadrants, and the accuracy of both.

        Args:
            patches_BNW: Patch features; the first `len(names)` images are emoji, the rest scenes.
            names: Class of each emoji, int64.
            quadrants: (scenes, 4, 4) classes, see `quadrant_targets`.
        """
        features_B5W = self(patches_BNW)
        count = names.shape[0]
        logits = self.names(features_B5W[:count, 0])
        parts = features_B5W[count:, 1:]
        quadrant_loss = sum(
            nn.functional.cross_entropy(head(parts).flatten(0, 1), quadrants[..., k].flatten())
            for k, head in enumerate(self.parts)
        )
        right = (logits.argmax(-1) == names).float().mean()
        is_right = torch.stack(
            [(h(parts).argmax(-1) == quadrants[..., k]) for k, h in enumerate(self.parts)]
        )
        return {
            "names": nn.functional.cross_entropy(logits, names, label_smoothing=0.05),
            "quadrants": torch.as_tensor(quadrant_loss),
            "names_right": right,
            "quadrants_right": is_right.all(0).float().mean(),
        }
