"""What turns a vision encoder's features into image tokens of the language model's width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shapes: B images, P patches in rows of a grid, N image tokens, V width of the encoder, W width of
# the language model.


class LinearMap(nn.Module):
    """One matrix, patch by patch."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_width)

    def forward(self, features_BPV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, P, W)."""
        tokens_BPW: Tensor = self.linear(features_BPV)
        return tokens_BPW


class TwoLayerMap(nn.Module):
    """Two matrices with a GELU between them, patch by patch."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)

    def forward(self, features_BPV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, P, W)."""
        tokens_BPW: Tensor = self.linear_2(functional.gelu(self.linear_1(features_BPV)))
        return tokens_BPW


class PixelShuffle(nn.Module):
    """Joins factor × factor patches into one token, then one or two matrices."""

    def __init__(self, width: int, out_width: int, factor: int = 2, layers: int = 1) -> None:
        super().__init__()
        self.factor = factor
        made = LinearMap if layers == 1 else TwoLayerMap
        self.map = made(width * factor**2, out_width)

    def forward(self, features_BPV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, N, W), N the grid's sides over the factor, rounded up."""
        joined, grid = join_patches(features_BPV, grid, self.factor)
        tokens_BNW: Tensor = self.map(joined, grid)
        return tokens_BNW


class AveragePool(nn.Module):
    """The average of factor × factor patches, then two matrices."""

    def __init__(self, width: int, out_width: int, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.map = TwoLayerMap(width, out_width)

    def forward(self, features_BPV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, N, W), N the grid's sides over the factor, rounded up."""
        rows, columns = grid
        maps_BVrc = features_BPV.transpose(1, 2).reshape(len(features_BPV), -1, rows, columns)
        pooled = functional.avg_pool2d(maps_BVrc, self.factor, ceil_mode=True)
        tokens_BNW: Tensor = self.map(pooled.flatten(2).transpose(1, 2), grid)
        return tokens_BNW


class Perceiver(nn.Module):
    """Learned latents that attend to all patches and to each other, after a gated MLP.

    Source: Idefics2 (arXiv 2405.02246); the latents are drawn, not equal as in its class.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        latents: int = 64,
        depth: int = 3,
        heads: int = 16,
        head_dim: int = 96,
        kv_heads: int = 4,
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(width, 4 * out_width, bias=False),
            nn.Linear(width, 4 * out_width, bias=False),
            nn.Linear(4 * out_width, out_width, bias=False),
        )
        self.latents = nn.Parameter(torch.randn(latents, out_width))
        self.blocks = nn.ModuleList(
            PerceiverBlock(out_width, heads, head_dim, kv_heads) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(out_width, eps=1e-6)

    def forward(self, features_BPV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, N, W), N the number of latents whatever the grid is."""
        hidden = functional.silu(self.gate(features_BPV)) * self.up(features_BPV)
        context_BPW = self.down(hidden)
        latents_BNW = self.latents.expand(len(features_BPV), -1, -1)
        for block in self.blocks:
            latents_BNW = block(latents_BNW, context_BPW)
        tokens_BNW: Tensor = self.norm(latents_BNW)
        return tokens_BNW


class PerceiverBlock(nn.Module):
    """One block of a perceiver: attention of latents to patches and latents, then an MLP."""

    def __init__(self, width: int, heads: int, head_dim: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.latent_norm = nn.RMSNorm(width, eps=1e-6)
        self.context_norm = nn.RMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, latents_BNW: Tensor, context_BPW: Tensor) -> Tensor:
        """Return the latents (B, N, W)."""
        latents = self.latent_norm(latents_BNW)
        keys = torch.cat([self.context_norm(context_BPW), latents], dim=1)
        q, k, v = (
            layer(some).unflatten(-1, (count, self.head_dim)).transpose(1, 2)
            for layer, some, count in (
                (self.q_proj, latents, self.heads),
                (self.k_proj, keys, self.kv_heads),
                (self.v_proj, keys, self.kv_heads),
            )
        )
        repeats = self.heads // self.kv_heads
        k, v = (one.repeat_interleave(repeats, dim=1) for one in (k, v))
        attended = functional.scaled_dot_product_attention(q, k, v)
        latents_BNW = latents_BNW + self.o_proj(attended.transpose(1, 2).flatten(2))
        hidden = functional.silu(self.fc1(self.mlp_norm(latents_BNW)))
        done_BNW: Tensor = latents_BNW + self.fc2(hidden)
        return done_BNW


def join_patches(
    features_BPV: Tensor, grid: tuple[int, int], factor: int
) -> tuple[Tensor, tuple[int, int]]:
    """Join factor × factor neighbouring patches along the width.

    Args:
        features_BPV: Patches in rows of the grid.
        grid: Rows and columns; zeros fill up sides that the factor does not divide.
        factor: Patches in each direction.

    Returns:
        (B, N, V · factor²), the patches of a token row by row; and the new grid.
    """
    rows, columns = grid
    width = features_BPV.shape[-1]
    maps = features_BPV.reshape(-1, rows, columns, width)
    below, right = -rows % factor, -columns % factor
    if below or right:
        maps = functional.pad(maps, (0, 0, 0, right, 0, below))
    rows, columns = (rows + below) // factor, (columns + right) // factor
    maps = maps.reshape(-1, rows, factor, columns, factor, width)
    joined = maps.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, factor**2 * width)
    return joined, (rows, columns)


CONNECTOR_MODULES: dict[str, Any] = {
    "linear": LinearMap,
    "mlp": TwoLayerMap,
    "pixel_shuffle": PixelShuffle,
    "average": AveragePool,
    "perceiver": Perceiver,
}
"""Kinds of connectors; each takes the two widths and its own options."""
