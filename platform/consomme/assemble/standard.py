"""Assemble parts as a class of transformers, so that plain transformers loads the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from consomme.assemble.choices import Connector, PerceiverConnector, PixelShuffleConnector
from consomme.assemble.parts import SIGLIP, LanguagePart, VisionPart
from consomme.models.imports import import_transformers

IMAGE = "<image>"
"""Token of an image, in all classes."""

_VIDEO = "<video>"

_ENLARGED = 1000.0

_AROUND = ("<fake_token_around_image>", IMAGE, "<end_of_utterance>")
_NATIVE = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
_NATIVE_GRID = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)]
_GRID = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]


def tokens_of(kind: str, *, is_split: bool) -> tuple[str, ...]:
    """Return the special tokens that a class's processor writes."""
    if kind == "idefics2":
        return _AROUND
    if kind == "idefics3":
        return (*_AROUND, "<global-img>", *(_GRID if is_split else ()))
    if kind == "lfm2_vl":
        return (IMAGE, *_NATIVE, *(_NATIVE_GRID if is_split else ()))
    return (IMAGE, _VIDEO) if kind == "llava_onevision" else (IMAGE,)


def why_not_language(language: LanguagePart) -> str:
    """Return why the standard classes cannot hold a language model; empty if they can.

    They run its layers, and a matrix of output tokens without a bias or anything after it.
    """
    hf = import_transformers()
    model = language.model
    family = model.config.model_type
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        return f"the output matrix of a {family} has a bias, for which they have no place"
    with torch.device("meta"):
        base = hf.AutoModel.from_config(model.config)
    if type(base) is not type(model.base_model):
        return f"AutoModel makes a {type(base).__name__} of a {family}"
    embedding = model.base_model.get_input_embeddings()
    is_named = getattr(model.base_model, "embed_tokens", None) is embedding
    if head.weight is embedding.weight and not is_named:
        return f"they tie matrices only of families whose matrix is embed_tokens, not a {family}'s"
    ids_BT = torch.arange(min(16, head.weight.shape[0]))[None]
    # What follows the matrix may show at large logits only, as a soft cap does.
    enlarged = head.register_forward_hook(lambda _module, _inputs, output: output * _ENLARGED)
    try:
        with torch.no_grad():
            expected = model(input_ids=ids_BT).logits
            found = head(model.base_model(input_ids=ids_BT).last_hidden_state)
    finally:
        enlarged.remove()
    if not torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-3):
        return f"a {family} changes its logits after the output matrix, which they leave out"
    return ""


def why_not_idefics(vision: VisionPart, connector: Connector, language: LanguagePart) -> str:
    """Return why Idefics2 or Idefics3 cannot hold parts; empty if they can."""
    if vision.family != SIGLIP:
        return f"their encoder is a SigLIP, not a {vision.family}"
    if isinstance(connector, PixelShuffleConnector) and vision.side % connector.factor:
        return f"a grid of {vision.side} patches is not a multiple of factor={connector.factor}"
    config = language.model.config
    missing = [n for n in ("intermediate_size", "hidden_act") if not hasattr(config, n)]
    if isinstance(connector, PerceiverConnector) and missing:
        return f"the config of a {config.model_type} has no {missing[0]}, by which its MLP is made"
    return ""


def build_llava(vision: VisionPart, language: LanguagePart, vision_layer: int) -> Any:
    """Assemble a `LlavaForConditionalGeneration`; the projector is of the current random state."""
    hf = import_transformers()
    encoder = without_head(vision.model)
    config = hf.LlavaConfig(
        vision_config=encoder.config.to_dict(),
        text_config=language.model.config.to_dict(),
        image_token_index=language.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=vision.side**2,
        vision_feature_layer=vision_layer,
        vision_feature_select_strategy="default" if vision.has_class_token else "full",
        tie_word_embeddings=language.model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = hf.LlavaForConditionalGeneration(config)
    model.model.vision_tower = encoder
    model.model.language_model = language.model.base_model
    model.lm_head = language.model.get_output_embeddings()
    model.model.multi_modal_projector = fresh(
        type(model.model.multi_modal_projector), config, model, language
    )
    return model


def build_llava_onevision(
    vision: VisionPart, language: LanguagePart, vision_layer: int, image_px: int
) -> Any:
    """Assemble a `LlavaOnevisionForConditionalGeneration`; what is new is of the random state.

    Args:
        vision: Encoder.
        language: Language model.
        vision_layer: Layer of the encoder, from its end.
        image_px: Longest side of an image that is cut into tiles.
    """
    hf = import_transformers()
    encoder = without_head(vision.model)
    config = hf.LlavaOnevisionConfig(
        vision_config=encoder.config.to_dict(),
        text_config=language.model.config.to_dict(),
        image_token_index=language.tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=language.tokenizer.convert_tokens_to_ids(_VIDEO),
        vision_feature_layer=vision_layer,
        vision_feature_select_strategy="default" if vision.has_class_token else "full",
        image_grid_pinpoints=tile_grids(vision, image_px),
        tie_word_embeddings=language.model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = hf.LlavaOnevisionForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = encoder
    inner.language_model = language.model.base_model
    model.lm_head = language.model.get_output_embeddings()
    inner.multi_modal_projector = fresh(type(inner.multi_modal_projector), config, model, language)
    newline = torch.randn(language.width) / language.width**0.5
    inner.image_newline = nn.Parameter(newline.to(language.model.dtype))
    return model


def tile_grids(vision: VisionPart, image_px: int) -> list[list[int]]:
    """Return height and width of the grids of tiles that LLaVA-OneVision cuts images into."""
    side = vision.image_px
    counts = range(1, max(2, image_px // side) + 1)
    return [[rows * side, columns * side] for rows in counts for columns in counts]


def build_idefics2(
    vision: VisionPart, language: LanguagePart, connector: PerceiverConnector
) -> Any:
    """Assemble an `Idefics2ForConditionalGeneration`; its connector is of the random state.

    transformers begins with latents that are all ones. They are drawn here: equal latents attend
    alike.
    """
    hf = import_transformers()
    config = hf.Idefics2Config(
        vision_config=_idefics_vision(vision),
        perceiver_config={
            "resampler_n_latents": connector.latents,
            "resampler_depth": connector.depth,
            "resampler_n_heads": connector.heads,
            "resampler_head_dim": connector.head_dim,
            "num_key_value_heads": connector.kv_heads,
            "hidden_size": language.width,
        },
        text_config=language.model.config.to_dict(),
        image_token_id=language.tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=language.model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = hf.Idefics2ForConditionalGeneration(config)
    _fill(model, vision, language)
    made = fresh(type(model.model.connector), config, model, language)
    nn.init.normal_(made.perceiver_resampler.latents)
    model.model.connector = made
    return model


def build_idefics3(vision: VisionPart, language: LanguagePart, factor: int) -> Any:
    """Assemble an `Idefics3ForConditionalGeneration`; its connector is of the random state."""
    hf = import_transformers()
    config = hf.Idefics3Config(
        vision_config=_idefics_vision(vision),
        text_config=language.model.config.to_dict(),
        image_token_id=language.tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=factor,
        tie_word_embeddings=language.model.config.tie_word_embeddings,
        pad_token_id=language.model.config.pad_token_id,
    )
    with torch.device("meta"):
        model = hf.Idefics3ForConditionalGeneration(config)
    _fill(model, vision, language)
    model.model.connector = fresh(type(model.model.connector), config, model, language)
    return model


def without_head(encoder: Any) -> Any:
    """Return an encoder without SigLIP's pooling head, which no VLM uses."""
    if not getattr(encoder, "use_head", False):
        return encoder
    encoder.config.vision_use_head = False
    encoder.use_head = False
    del encoder.head
    return encoder


def _idefics_vision(vision: VisionPart) -> dict[str, Any]:
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels"
        " image_size patch_size hidden_act layer_norm_eps attention_dropout"
    )
    return {name: getattr(vision.model.config, name) for name in names.split()}


def _fill(model: Any, vision: VisionPart, language: LanguagePart) -> None:
    """Put encoder and language model into an Idefics that was built without weights."""
    inner = model.model
    inner.vision_model = inner.vision_model.to_empty(device="cpu").to(vision.model.dtype)
    weights = without_head(vision.model).state_dict()
    inner.vision_model.load_state_dict(weights, strict=True, assign=True)
    inner.text_model = language.model.base_model
    model.lm_head = language.model.get_output_embeddings()


def fresh(made_of: type[Any], config: Any, model: Any, language: LanguagePart) -> Any:
    """Make a connector with weights as the model's own class initialises them."""
    made = made_of(config)
    for module in made.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            model._init_weights(module)
    return made.to(language.model.dtype)


def build_processor(
    kind: str,
    vision: VisionPart,
    language: LanguagePart,
    template: str,
    *,
    num_tokens: int,
    image_px: int,
    is_split: bool,
    tiling: Mapping[str, Any] | None = None,
) -> Any:
    """Build the processor of an assembled standard class.

    Args:
        kind: `llava`, `llava_onevision`, `idefics2`, `idefics3` or `consomme_vlm`.
        vision: Gives sizes and the scale of pixels.
        language: Gives the tokenizer, with its new tokens.
        template: Chat template.
        num_tokens: Image tokens of an image, or of a tile.
        image_px: Longest side of an image.
        is_split: Whether the class cuts images into tiles too, in its own way.
        tiling: How others cut them; None for not at all.
    """
    # Their modules import transformers.
    from consomme.models.tiling.image_processor import ConsommeTilingImageProcessor
    from consomme.models.tiling.processor import ConsommeTilingProcessor

    hf = import_transformers()
    side = vision.image_px
    pixels = {"image_mean": vision.mean, "image_std": vision.std, "do_convert_rgb": True}
    if tiling is not None:
        images = ConsommeTilingImageProcessor(
            tiling=dict(tiling), image_mean=vision.mean, image_std=vision.std
        )
        return ConsommeTilingProcessor(
            images, language.tokenizer, chat_template=template, tokens_per_tile=num_tokens
        )
    if kind == "llava":
        square = {"height": side, "width": side}
        return hf.LlavaProcessor(
            image_processor=hf.CLIPImageProcessorPil(size=square, do_center_crop=False, **pixels),
            tokenizer=language.tokenizer,
            patch_size=vision.model.config.patch_size,
            vision_feature_select_strategy="default" if vision.has_class_token else "full",
            image_token=IMAGE,
            num_additional_image_tokens=int(vision.has_class_token),
            chat_template=template,
        )
    if kind == "llava_onevision":
        grids = tile_grids(vision, image_px)
        square = {"height": side, "width": side}
        return hf.LlavaOnevisionProcessor(
            hf.LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=grids, **pixels),
            language.tokenizer,
            hf.LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=num_tokens + int(vision.has_class_token),
            vision_feature_select_strategy="default" if vision.has_class_token else "full",
            chat_template=template,
        )
    if kind == "idefics2":
        size = {"longest_edge": image_px, "shortest_edge": max(1, image_px * 378 // 980)}
        images = hf.Idefics2ImageProcessorPil(size=size, do_image_splitting=is_split, **pixels)
        return hf.Idefics2Processor(
            images, language.tokenizer, image_seq_len=num_tokens, chat_template=template
        )
    if kind == "consomme_vlm":
        square = {"height": side, "width": side}
        return _own_processor(
            image_processor=hf.CLIPImageProcessorPil(size=square, do_center_crop=False, **pixels),
            tokenizer=language.tokenizer,
            num_image_tokens=num_tokens,
            image_token=IMAGE,
            chat_template=template,
        )
    images = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": image_px},
        max_image_size={"longest_edge": side},
        do_image_splitting=is_split,
        **pixels,
    )
    return hf.Idefics3Processor(
        images, language.tokenizer, image_seq_len=num_tokens, chat_template=template
    )


def _own_processor(**parts: Any) -> Any:
    from consomme.models.consomme_vlm.processing import ConsommeVlmProcessor

    return ConsommeVlmProcessor(**parts)
