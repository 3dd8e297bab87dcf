"""Assemble parts as our own class, where no class of transformers holds them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from consomme.assemble.choices import Connector, CrossAttentionFusion, Fusion
from consomme.assemble.parts import LanguagePart, VisionPart
from consomme.assemble.standard import IMAGE, without_head
from consomme.base.errors import RecipeError
from consomme.models.imports import import_transformers


def build_own(
    vision: VisionPart,
    language: LanguagePart,
    ocr: VisionPart | None,
    connector: Connector,
    fusion: Fusion,
    *,
    vision_layer: int,
    num_tokens: int,
    general_weight: float,
) -> Any:
    """Assemble a `ConsommeVlmForConditionalGeneration`; what is new is of the random state.

    Args:
        vision: First encoder.
        language: Any causal language model, with its head as it is.
        ocr: Second encoder of the same shape, or None.
        connector: Of the features.
        fusion: How words see images.
        vision_layer: Layer of the encoders, from their end.
        num_tokens: Placeholders of an image.
        general_weight: Share of the first encoder.
    """
    import_transformers()
    from consomme.models.consomme_vlm.configuration import ConsommeVlmConfig
    from consomme.models.consomme_vlm.modeling import ConsommeVlmForConditionalGeneration

    cross: dict[str, Any] = {}
    if isinstance(fusion, CrossAttentionFusion):
        cross = _cross_sizes(fusion, language)
    encoder = without_head(vision.model)
    config = ConsommeVlmConfig(
        text_config=language.model.config.to_dict(),
        vision_config=encoder.config.to_dict(),
        image_token_id=language.tokenizer.convert_tokens_to_ids(IMAGE),
        num_image_tokens=num_tokens,
        connector=connector.kind,
        connector_options=dataclasses.asdict(connector),  # type: ignore[call-overload]
        vision_feature_layer=vision_layer,
        num_encoders=1 if ocr is None else 2,
        general_weight=general_weight,
        **cross,
    )
    with torch.device("meta"):
        model = ConsommeVlmForConditionalGeneration(config)
    for name in ("connector", "cross_blocks"):
        part = getattr(model, name)
        part.to_empty(device="cpu")
        for module in part.modules():
            model._init_weights(module)
        part.to(language.model.dtype)
    model.vision_tower = encoder
    if ocr is not None:
        model.ocr_tower = without_head(ocr.model)
    model.language_model = language.model
    model.connect()
    return model


def _cross_sizes(fusion: CrossAttentionFusion, language: LanguagePart) -> dict[str, Any]:
    heads = fusion.heads or language.model.config.num_attention_heads
    layers = language.model.config.num_hidden_layers
    if language.width % heads:
        raise RecipeError(
            f"fusion.heads: found {heads}, expected a divisor of the language model's width"
            f" {language.width}"
        )
    if fusion.every > layers:
        raise RecipeError(
            f"fusion.every: found {fusion.every}, expected 1 to {layers}, the number of the"
            " language model's layers"
        )
    return {
        "cross_every": fusion.every,
        "cross_heads": heads,
        "cross_ffn": fusion.ffn_ratio * language.width,
    }


def check_same_shape(vision: VisionPart, ocr: VisionPart) -> None:
    """Check that the features of two encoders can be averaged.

    Raises:
        RecipeError: They are of different families or sizes, or see other pixels.
    """
    names = (
        "model_type hidden_size num_hidden_layers image_size patch_size num_attention_heads"
        " intermediate_size hidden_act"
    )
    for name in names.split():
        one, other = (getattr(part.model.config, name) for part in (vision, ocr))
        if one != other:
            raise RecipeError(
                f"ocr_encoder: has {name}={other}, expected {one} as vision_encoder has: features"
                " of different shape cannot be averaged"
            )
    if (vision.mean, vision.std) != (ocr.mean, ocr.std):
        raise RecipeError(
            f"ocr_encoder: was trained with pixels of mean {ocr.mean} and deviation {ocr.std},"
            f" expected {vision.mean} and {vision.std} as vision_encoder: both are given the same"
        )
