"""What a recipe says of the parts: shapes of random ones, connectors, and how both are fused.

This module imports no torch, so recipes load quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.registry import Registry


@dataclass(frozen=True, kw_only=True)
class VisionShape(Checked):
    """Sizes of a vision encoder with random weights."""

    family: Literal["clip", "siglip", "siglip2"] = "siglip"
    """`clip` has a class token and biases in no projection of patches, `siglip` has neither;
    `siglip2` sees images in their own shape."""

    image_px: PositiveInt = 64
    """Side of the square image, and of the square that `siglip2` has positions for."""

    patch_px: PositiveInt = 8
    """Side of one patch."""

    width: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    ffn: PositiveInt = 384

    @rule
    def _fits(self) -> Iterator[str]:
        if self.image_px % self.patch_px:
            yield (
                f"image_px: found {self.image_px}, expected a multiple of patch_px={self.patch_px}"
            )
        if self.width % self.heads:
            yield f"width: found {self.width}, expected a multiple of heads={self.heads}"


@dataclass(frozen=True, kw_only=True)
class LanguageShape(Checked):
    """Sizes of a language model with random weights."""

    family: str = "llama"
    """Any causal model of transformers by its `model_type`, such as `qwen2` or `gpt_neox`."""

    width: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    """Heads of keys and values; None: as many as `heads`."""

    ffn: PositiveInt = 384
    max_positions: PositiveInt = 1024
    tied: bool = False
    """Whether input and output tokens share one matrix."""

    @rule
    def _fits(self) -> Iterator[str]:
        if self.width % self.heads:
            yield f"width: found {self.width}, expected a multiple of heads={self.heads}"
        if self.kv_heads and self.heads % self.kv_heads:
            yield f"heads: found {self.heads}, expected a multiple of kv_heads={self.kv_heads}"


class Connector(Protocol):
    """Interface of every registered connector."""

    kind: ClassVar[str]
    """Name of its module in `consomme.models.consomme_vlm.connectors`."""


CONNECTORS: Registry[Connector] = Registry("connector", "consomme/assemble/choices.py")


@CONNECTORS.register("linear")
@dataclass(frozen=True, kw_only=True)
class LinearConnector(Checked):
    """One matrix from the encoder's width to the language model's, patch by patch."""

    kind: ClassVar[str] = "linear"


@CONNECTORS.register("mlp")
@dataclass(frozen=True, kw_only=True)
class MlpConnector(Checked):
    """Two matrices with a GELU between them, patch by patch.

    Source: LLaVA-1.5 (arXiv 2310.03744); POINTS (arXiv 2409.04828).
    """

    kind: ClassVar[str] = "mlp"


@CONNECTORS.register("pixel_shuffle")
@dataclass(frozen=True, kw_only=True)
class PixelShuffleConnector(Checked):
    """Joins factor × factor neighbouring patches into one token, then one or two matrices.

    Nothing is averaged away: a token is as wide as all its patches. A grid whose sides the factor
    does not divide is padded with zeros at the right and at the bottom.
    """

    kind: ClassVar[str] = "pixel_shuffle"

    factor: PositiveInt = 2
    """Neighbouring patches in each direction; there are factor² times fewer tokens."""

    layers: Literal[1, 2] = 1
    """Matrices after the shuffle: 1 as in Idefics3, 2 with a GELU between them as in POINTS."""


@CONNECTORS.register("perceiver")
@dataclass(frozen=True, kw_only=True)
class PerceiverConnector(Checked):
    """Learned latents that attend to all patches: as many tokens whatever the image's size is.

    A gated MLP to the language model's width stands before it.
    Source: Idefics2 (arXiv 2405.02246), whose checkpoint has 64 latents, depth 3, 16 heads of 96,
    and 4 heads of keys and values.
    """

    kind: ClassVar[str] = "perceiver"

    latents: PositiveInt = 64
    """Image tokens per image, or per tile."""

    depth: PositiveInt = 3
    heads: PositiveInt = 16
    head_dim: PositiveInt = 96
    kv_heads: PositiveInt = 4

    @rule
    def _heads_fit(self) -> Iterator[str]:
        if self.heads % self.kv_heads:
            yield f"heads: found {self.heads}, expected a multiple of kv_heads={self.kv_heads}"


@CONNECTORS.register("average")
@dataclass(frozen=True, kw_only=True)
class AverageConnector(Checked):
    """The average of factor × factor neighbouring patches, then two matrices with a GELU.

    A grid whose sides the factor does not divide has smaller averages at its right and bottom.
    """

    kind: ClassVar[str] = "average"

    factor: PositiveInt = 2
    """Neighbouring patches in each direction; there are factor² times fewer tokens."""


class Fusion(Protocol):
    """Interface of every registered fusion."""

    is_cross_attention: ClassVar[bool]
    """Whether image tokens stay out of the text."""


FUSIONS: Registry[Fusion] = Registry("fusion", "consomme/assemble/choices.py")


@FUSIONS.register("autoregressive")
@dataclass(frozen=True, kw_only=True)
class AutoregressiveFusion(Checked):
    """Image tokens stand in the text, in the place of placeholders.

    Source: LLaVA; "fully autoregressive" in Idefics2 (arXiv 2405.02246).
    """

    is_cross_attention: ClassVar[bool] = False


@FUSIONS.register("cross_attention")
@dataclass(frozen=True, kw_only=True)
class CrossAttentionFusion(Checked):
    """Gated blocks between the language model's layers attend to the image; one token marks it.

    The gates begin at zero, so the assembled model writes what the language model writes. Texts
    without an image never pass through the blocks.
    Source: Flamingo (arXiv 2204.14198); compared in Idefics2 (arXiv 2405.02246).
    """

    is_cross_attention: ClassVar[bool] = True

    every: PositiveInt = 4
    """A block stands before every so many layers, the first before the layer of this number."""

    heads: PositiveInt | None = None
    """Heads of the blocks; None: as many as the language model has."""

    ffn_ratio: PositiveInt = 4
    """Width of the blocks' feed-forward part, in widths of the language model."""
