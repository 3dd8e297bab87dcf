"""Assemble an encoder of native resolution: SigLIP 2's NaFlex, in the class of LFM2-VL.

It sees an image in its own shape, in as many patches as it has, up to a limit; its positions are
interpolated for each image. LFM2-VL's class joins neighbouring patches and has two matrices; its
language model may be of any family that the standard classes hold.
"""

from __future__ import annotations

from typing import Any

import torch

from consomme.assemble.choices import Connector, MlpConnector, PixelShuffleConnector
from consomme.assemble.parts import LanguagePart, VisionPart
from consomme.assemble.standard import IMAGE, fresh, without_head
from consomme.base.errors import RecipeError
from consomme.models.imports import import_transformers

_MIN_SHARE = 4
"""The smallest image has at least a quarter of the most tokens, as LFM2-VL's 64 of 256."""


def check_native(connector: Connector, reasons: list[str]) -> None:
    """Check that LFM2-VL's class holds an encoder of native resolution with a connector.

    Args:
        connector: Of the assembly.
        reasons: What else stands against it.

    Raises:
        RecipeError: It does not.
    """
    is_known = isinstance(connector, MlpConnector) or (
        isinstance(connector, PixelShuffleConnector) and connector.layers == 2
    )
    if not is_known:
        reasons = [f"found the connector {connector.kind}", *reasons]
    if reasons:
        raise RecipeError(
            "vision_encoder: a SigLIP 2 of native resolution is held by LFM2-VL's class alone, with"
            " connector={name: mlp} or {name: pixel_shuffle, layers: 2}, one encoder's last layer,"
            f" fusion={{name: autoregressive}} and no tiling: {'; '.join(reasons)}"
        )


def num_native_tokens(connector: Connector, vision: VisionPart, side_px: int) -> int:
    """Return the image tokens of a square image, or tile, of `side_px`.

    Raises:
        RecipeError: Its patches do not fit the connector.
    """
    each = vision.patch_px * int(getattr(connector, "factor", 1))
    if side_px % each:
        raise RecipeError(
            f"image_px: found {side_px}, expected a multiple of {each}: the side of the patches"
            " that become one image token"
        )
    return int(side_px // each) ** 2


def build_lfm2_vl(vision: VisionPart, language: LanguagePart, factor: int) -> Any:
    """Assemble an `Lfm2VlForConditionalGeneration`; its projector is of the random state.

    Args:
        vision: A `Siglip2VisionModel`.
        language: Language model.
        factor: Neighbouring patches in each direction that become one token.
    """
    hf = import_transformers()
    encoder = without_head(vision.model)
    config = hf.Lfm2VlConfig(
        vision_config=encoder.config.to_dict(),
        text_config=language.model.config.to_dict(),
        image_token_id=language.tokenizer.convert_tokens_to_ids(IMAGE),
        downsample_factor=factor,
        projector_hidden_size=language.width,
        projector_use_layernorm=False,
        tie_word_embeddings=language.model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = hf.Lfm2VlForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = encoder
    inner.language_model = language.model.base_model
    model.lm_head = language.model.get_output_embeddings()
    inner.multi_modal_projector = fresh(type(inner.multi_modal_projector), config, model, language)
    return model


def native_processor(
    vision: VisionPart,
    language: LanguagePart,
    template: str,
    *,
    factor: int,
    num_tokens: int,
    max_tiles: int | None,
) -> Any:
    """Build the processor.

    Args:
        vision: Gives sizes and the scale of pixels.
        language: Gives the tokenizer, with its new tokens.
        template: Chat template.
        factor: As for `build_lfm2_vl`.
        num_tokens: The most image tokens of an image that is not cut, and those of a tile.
        max_tiles: The most tiles of an image; None for no tiles.
    """
    hf = import_transformers()
    images = hf.Lfm2VlImageProcessor(
        do_image_splitting=max_tiles is not None,
        downsample_factor=factor,
        encoder_patch_size=vision.patch_px,
        tile_size=round(num_tokens**0.5) * factor * vision.patch_px,
        min_tiles=2,
        max_tiles=max_tiles or 2,
        min_image_tokens=max(1, num_tokens // _MIN_SHARE),
        max_image_tokens=num_tokens,
        image_mean=vision.mean,
        image_std=vision.std,
        do_convert_rgb=True,
    )
    return hf.Lfm2VlProcessor(images, language.tokenizer, chat_template=template)
