"""Assemble a VLM: choose its class, put the parts in, and check what came out.

A class of transformers is taken wherever one holds the parts as they are; why one does not is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from consomme.assemble.choices import (
    Connector,
    Fusion,
    LinearConnector,
    MlpConnector,
    PerceiverConnector,
    PixelShuffleConnector,
)
from consomme.assemble.native import (
    build_lfm2_vl,
    check_native,
    native_processor,
    num_native_tokens,
)
from consomme.assemble.own import build_own, check_same_shape
from consomme.assemble.parts import LanguagePart, VisionPart
from consomme.assemble.standard import (
    IMAGE,
    build_idefics2,
    build_idefics3,
    build_llava,
    build_llava_onevision,
    build_processor,
    tokens_of,
    why_not_idefics,
    why_not_language,
)
from consomme.assemble.text import add_tokens, set_template
from consomme.base.errors import RecipeError
from consomme.models.attention import max_positions
from consomme.models.chat_prefix import chat_encoder_for
from consomme.vision.tiling.registry import TILINGS

ROOM = 64
"""Positions for words that a language model has to have besides those for an image."""


@dataclass(frozen=True, kw_only=True)
class AssemblyPlan:
    """What is assembled of two parts."""

    connector: Connector
    fusion: Fusion
    vision_layer: int = -1
    """Layer of the encoder whose features are used, from its end."""

    image_px: int | None = None
    """Longest side of an image before it is cut into tiles; None: that of the encoder, or twice it
    if it is split."""

    is_split: bool = False
    tiling: Mapping[str, Any] | None = None
    """How images are cut into squares: `{name: …, field: …}`; None for what `is_split` says."""

    multiple: int = 64
    """The number of rows of tokens is rounded up to one of this."""

    general_weight: float = 0.5
    """Share of the first of two encoders in the average of their features."""


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A VLM that was assembled."""

    model: Any
    processor: Any
    kind: str
    """`llava`, `llava_onevision`, `idefics2`, `idefics3`, `lfm2_vl`, or `consomme_vlm`."""

    num_tokens: int
    """Image tokens of an image, or of a tile, in the text; one with cross-attention."""

    new_tokens: Sequence[str]
    reasons: Sequence[str] = field(default_factory=tuple)
    """Why no class of transformers holds it; empty if one does."""

    def line(self) -> str:
        """Say what it is in one line."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"a {type(self.model).__name__} of {parameters:,} parameters, {self.num_tokens} image"
            " tokens in the text per image or tile"
        )


def choose_class(
    plan: AssemblyPlan, vision: VisionPart, language: LanguagePart, *, has_ocr: bool = False
) -> tuple[str, list[str]]:
    """Return the class of an assembly, and why it is none of transformers."""
    connector = plan.connector
    reasons = []
    if has_ocr:
        reasons.append("two encoders whose features are averaged are part of no class")
    if plan.fusion.is_cross_attention:
        reasons.append("gated blocks of cross-attention are part of no class of transformers")
    if reason := why_not_language(language):
        reasons.append(reason)
    if vision.is_native:
        if plan.tiling is not None:
            reasons.append("found a tiling")
        if plan.vision_layer != -1:
            reasons.append(f"found vision_layer={plan.vision_layer}")
        check_native(connector, reasons)
        return "lfm2_vl", []
    if isinstance(connector, MlpConnector):
        kind = "llava_onevision" if plan.is_split else "llava"
        return ("consomme_vlm" if reasons else kind), reasons
    shuffles = isinstance(connector, PixelShuffleConnector) and connector.layers == 1
    if isinstance(connector, (LinearConnector, PerceiverConnector)) or shuffles:
        if reason := why_not_idefics(vision, connector, language):
            reasons.append(reason)
        if plan.tiling is not None:
            reasons.append("Idefics2 and Idefics3 cut images in their own ways")
        if plan.vision_layer != -1:
            reasons.append("Idefics2 and Idefics3 take the features of the encoder's last layer")
        kind = "idefics2" if isinstance(connector, PerceiverConnector) else "idefics3"
        return ("consomme_vlm" if reasons else kind), reasons
    reasons.append(f"no class of transformers has the connector {connector.kind} in this form")
    return "consomme_vlm", reasons


def num_image_tokens(connector: Connector, vision: VisionPart) -> int:
    """Return the image tokens that a connector makes of a square image of the encoder."""
    if isinstance(connector, PerceiverConnector):
        return connector.latents
    factor = getattr(connector, "factor", 1)
    return int(-(-vision.side // factor)) ** 2


def assemble(
    plan: AssemblyPlan,
    vision: VisionPart,
    language: LanguagePart,
    ocr: VisionPart | None = None,
    *,
    seed: int,
) -> Assembled:
    """Assemble a VLM.

    Args:
        plan: How.
        vision: Becomes a part of the result.
        language: Becomes a part of the result; gets new tokens.
        ocr: A second encoder, whose features are averaged with those of the first.
        seed: Of the connector's weights; the caller's random state is not changed.

    Raises:
        RecipeError: The parts do not fit together.
        CheckpointError: The language model's tokenizer or template takes no images; or the result
            is not what its parts are.
    """
    kind, reasons = choose_class(plan, vision, language, has_ocr=ocr is not None)
    if kind == "consomme_vlm" and plan.is_split:
        raise RecipeError(
            "split: LLaVA-OneVision, Idefics2 and Idefics3 have tiles of their own, and none of"
            f" them holds these parts: {'; '.join(reasons)}. Use a tiling"
        )
    num_tokens = num_image_tokens(plan.connector, vision)
    if vision.is_native:
        side_px = vision.image_px if plan.is_split else longest_side(plan, vision)
        num_tokens = num_native_tokens(plan.connector, vision, side_px)
    if plan.fusion.is_cross_attention:
        # They stay out of the text, where one placeholder stands for all.
        num_tokens = 1
    num_tiles = num_encoded(plan, vision)
    check_room(num_tiles, num_tokens, language)
    new_tokens = add_tokens(language, tokens_of(kind, is_split=plan.is_split), plan.multiple)
    template = set_template(language, IMAGE)
    if ocr is not None:
        check_same_shape(vision, ocr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(kind, plan, vision, language, ocr, num_tokens)
    if vision.is_native:
        processor = native_processor(
            vision,
            language,
            template,
            factor=getattr(plan.connector, "factor", 1),
            num_tokens=num_tokens,
            max_tiles=num_tiles - 1 if plan.is_split else None,
        )
    else:
        processor = build_processor(
            kind,
            vision,
            language,
            template,
            num_tokens=num_tokens,
            image_px=longest_side(plan, vision),
            is_split=plan.is_split,
            tiling=plan.tiling,
        )
    model.eval()
    model.generation_config = language.model.generation_config
    end = chat_encoder_for(model.config, processor).turn_end.last_id
    _stop_at(model, end)
    return Assembled(
        model=model,
        processor=processor,
        kind=kind,
        num_tokens=num_tokens,
        new_tokens=new_tokens,
        reasons=reasons,
    )


def _build(
    kind: str,
    plan: AssemblyPlan,
    vision: VisionPart,
    language: LanguagePart,
    ocr: VisionPart | None,
    num_tokens: int,
) -> Any:
    if kind == "lfm2_vl":
        return build_lfm2_vl(vision, language, getattr(plan.connector, "factor", 1))
    if kind == "llava":
        return build_llava(vision, language, plan.vision_layer)
    if kind == "llava_onevision":
        return build_llava_onevision(
            vision, language, plan.vision_layer, longest_side(plan, vision)
        )
    if kind == "idefics2":
        assert isinstance(plan.connector, PerceiverConnector)
        return build_idefics2(vision, language, plan.connector)
    if kind == "idefics3":
        return build_idefics3(vision, language, getattr(plan.connector, "factor", 1))
    return build_own(
        vision,
        language,
        ocr,
        plan.connector,
        plan.fusion,
        vision_layer=plan.vision_layer,
        num_tokens=num_tokens,
        general_weight=plan.general_weight,
    )


def longest_side(plan: AssemblyPlan, vision: VisionPart) -> int:
    """Return the longest side of an image, before it is cut into tiles."""
    return plan.image_px or vision.image_px * (1 + plan.is_split)


def num_encoded(plan: AssemblyPlan, vision: VisionPart) -> int:
    """Return the most squares that an image of usual shape is cut into, the whole one among them.

    Raises:
        RecipeError: A tiling cuts what the encoder does not take.
    """
    if plan.tiling is None:
        side = max(2, longest_side(plan, vision) // vision.image_px)
        is_quartered = isinstance(plan.connector, PerceiverConnector)
        return (5 if is_quartered else side**2 + 1) if plan.is_split else 1
    tiling = TILINGS.build(dict(plan.tiling), "tiling")
    side = vision.image_px
    if not tiling.has_one_size:
        raise RecipeError(
            f"tiling: {plan.tiling['name']} keeps shapes, expected one that cuts squares: CLIP and"
            " SigLIP take squares. Idefics2 (connector=perceiver with a SigLIP, no tiling) keeps"
            " shapes"
        )
    if tiling.tile_px != side:
        raise RecipeError(
            f"tiling.tile_px: found {tiling.tile_px}, expected {side}, the side of the encoder"
        )
    shapes = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
    sizes = [(k * side * w // h, k * side) for k in (1, 2, 4) for w, h in shapes]
    return max(tiling.plan(width, height).num_encoded for width, height in sizes)


def check_room(num_tiles: int, num_tokens: int, language: LanguagePart) -> None:
    """Check that an image and a few words fit into the language model's positions.

    Raises:
        RecipeError: They do not.
    """
    check_positions(num_tiles * num_tokens, language.model.config)


def check_positions(num_tokens: int, config: Any) -> None:
    """Check that so many image tokens and a few words fit into the positions of a model.

    Raises:
        RecipeError: They do not.
    """
    needed, found = num_tokens + ROOM, max_positions(config)
    if needed > found:
        raise RecipeError(
            f"language_model: has {found} positions, expected {needed} at least: an image takes"
            f" {num_tokens} tokens. Use a connector with fewer tokens (pixel_shuffle, perceiver,"
            " average), fusion={name: cross_attention}, or another language model"
        )


def _stop_at(model: Any, end: int) -> None:
    """Have generation stop at the token that ends the assistant's turns."""
    known = model.generation_config.eos_token_id
    ids = list(known) if isinstance(known, list) else [] if known is None else [known]
    if end not in ids:
        model.generation_config.eos_token_id = [*ids, end] if ids else end
