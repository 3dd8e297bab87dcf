"""Tiny models of families of the table that no other file builds; see `family_table`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.families import (
    GEMMA_TEMPLATE,
    IM,
    MROPE,
    QWEN_TEMPLATE,
    _qwen_ids,
    _qwen_words,
    chatml,
    hf,
    siglip,
    text_config,
    tokenizer,
)
from tests.support.more_families import LINEAR, MOE, text_family

ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def words_with(*special: str, **roles: str) -> Any:
    """A tokenizer of ChatML with further tokens; `roles` name some of them."""
    return tokenizer("bytes", [*IM, *special, *roles.values()], roles, **ENDS)


def clip(**more: Any) -> Any:
    return hf.CLIPVisionConfig(
        **{
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            **more,
        }
    )


PINS = [[32, 64], [64, 32], [64, 64]]


def llava_next() -> tuple[Any, Any]:
    words = words_with("<image>")
    config = hf.LlavaNextConfig(
        vision_config=clip(),
        text_config=text_config(hf.MistralConfig, sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINS,
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINS
    )
    processor = hf.LlavaNextProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=chatml("<image>", after_image="\n"),
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_next_video() -> tuple[Any, Any]:
    words = words_with("<image>", "<video>")
    config = hf.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=text_config(hf.LlamaConfig),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINS,
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINS
    )
    processor = hf.LlavaNextVideoProcessor(
        hf.LlavaNextVideoVideoProcessor(), images, words, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chatml("<image>", after_image="\n"),
    )  # fmt: skip
    return hf.LlavaNextVideoForConditionalGeneration(config), processor


def pixtral_vision() -> dict[str, Any]:
    return {
        "model_type": "pixtral",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }


def pixtral() -> tuple[Any, Any]:
    words = words_with("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.LlavaConfig(
        vision_config=pixtral_vision(),
        text_config=text_config(hf.MistralConfig, sliding_window=None).to_dict(),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=8)
    processor = hf.PixtralProcessor(images, words, patch_size=8, chat_template=chatml("[IMG]"))
    return hf.LlavaForConditionalGeneration(config), processor


def mistral3() -> tuple[Any, Any]:
    words = words_with("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.Mistral3Config(
        vision_config=pixtral_vision(),
        text_config=text_config(hf.MistralConfig, sliding_window=None).to_dict(),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=16)
    processor = hf.PixtralProcessor(
        images, words, patch_size=8, spatial_merge_size=2, chat_template=chatml("[IMG]")
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


def vipllava() -> tuple[Any, Any]:
    words = words_with("<image>")
    config = hf.VipLlavaConfig(
        vision_config=clip(),
        text_config=text_config(hf.LlamaConfig).to_dict(),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-1, -2],
        image_seq_length=16,
    )
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = hf.LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=chatml("<image>", after_image="\n"),
    )  # fmt: skip
    return hf.VipLlavaForConditionalGeneration(config), processor


def deepseek_vl() -> tuple[Any, Any]:
    words = words_with(image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        vision_config=siglip(vision_use_head=False).to_dict(),
        text_config=text_config(hf.LlamaConfig).to_dict(),
        image_token_id=words.image_token_id,
    )
    images = hf.DeepseekVLImageProcessorPil(size={"height": 32, "width": 32}, min_size=4)
    processor = hf.DeepseekVLProcessor(
        images, words, num_image_tokens=16, chat_template=chatml("<image_placeholder>")
    )
    return hf.DeepseekVLForConditionalGeneration(config), processor


def deepseek_vl_hybrid() -> tuple[Any, Any]:
    words = words_with(image_token="<image_placeholder>")
    config = hf.DeepseekVLHybridConfig(
        vision_config=siglip(vision_use_head=False).to_dict(),
        high_res_vision_config={
            "model_type": "sam_vision_model", "hidden_size": 24, "output_channels": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 128, "patch_size": 8,
            "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32,
        },
        text_config=text_config(hf.LlamaConfig).to_dict(),
        image_token_id=words.image_token_id,
    )  # fmt: skip
    images = hf.DeepseekVLHybridImageProcessorPil(
        size={"height": 32, "width": 32}, high_res_size={"height": 128, "width": 128}, min_size=4
    )
    processor = hf.DeepseekVLHybridProcessor(
        images, words, num_image_tokens=16, chat_template=chatml("<image_placeholder>")
    )
    return hf.DeepseekVLHybridForConditionalGeneration(config), processor


def aya_vision() -> tuple[Any, Any]:
    words = words_with(
        "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<image>",
        "TILE", "TILE_GLOBAL",
    )  # fmt: skip
    config = hf.AyaVisionConfig(
        vision_config=siglip(vision_use_head=False).to_dict(),
        text_config=text_config(hf.Cohere2Config, sliding_window=4096).to_dict(),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-5,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = hf.AyaVisionProcessor(
        images, words, patch_size=8, img_size=32, downsample_factor=2,
        chat_template=chatml("<image>"),
    )  # fmt: skip
    return hf.AyaVisionForConditionalGeneration(config), processor


def _qwen_like(
    model: type, config: Any, processor: type, video: type, template: str = QWEN_TEMPLATE
) -> tuple[Any, Any]:
    """The images of Qwen's processors, in front of another model."""
    words = _qwen_words()
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    made = config(**_qwen_ids(words))
    return model(made), processor(images, words, video(), chat_template=template)


QWEN3_VISION = {
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 8,
    "depth": 3,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}


def qwen3_vl_moe() -> tuple[Any, Any]:
    text = text_config(hf.Qwen3VLMoeTextConfig, rope_parameters=MROPE, **MOE).to_dict()
    return _qwen_like(
        hf.Qwen3VLMoeForConditionalGeneration,
        partial(
            hf.Qwen3VLMoeConfig,
            text_config=text,
            vision_config=QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]},
        ),
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    )


def qwen3_5_moe() -> tuple[Any, Any]:
    text = text_config(
        hf.Qwen3_5MoeTextConfig,
        layer_types=["linear_attention", "full_attention"],
        rope_parameters=MROPE | {"partial_rotary_factor": 1.0},
        shared_expert_intermediate_size=16,
        **LINEAR,
        **MOE,
    ).to_dict()
    return _qwen_like(
        hf.Qwen3_5MoeForConditionalGeneration,
        partial(hf.Qwen3_5MoeConfig, text_config=text, vision_config=QWEN3_VISION),
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    )


def kimi_k25() -> tuple[Any, Any]:
    words = words_with(
        "<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>",
        "<|kimi_k25_video_placeholder|>",
    )  # fmt: skip
    config = hf.Kimi_K25Config(
        text_config=text_config(hf.DeepseekV3Config, **DEEPSEEK_V3).to_dict(),
        vision_config={
            "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8, "num_attention_heads": 2,
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48,
        },
        projection_hidden_size=32,
        image_token_id=words.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|kimi_k25_video_placeholder|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|media_end|>"),
    )  # fmt: skip
    images = hf.Kimi_K25ImageProcessor(patch_size=8)
    processor = hf.Kimi_K25Processor(
        images, words, hf.Kimi_K25VideoProcessor(), chat_template=chatml(
            "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
        )
    )  # fmt: skip
    return hf.Kimi_K25ForConditionalGeneration(config), processor


GLM_VISION = {
    "hidden_size": 24, "intermediate_size": 40, "depth": 2, "num_heads": 2, "patch_size": 8,
    "out_hidden_size": 32, "image_size": 32,
}  # fmt: skip


def _glm(
    model: type, config: type, text: Any, processor: type, images: type, video: type, **vision: Any
) -> tuple[Any, Any]:
    tokens = {
        "image_token": "<|image|>", "video_token": "<|video|>",
        "image_start_token": "<|begin_of_image|>", "image_end_token": "<|end_of_image|>",
        "video_start_token": "<|begin_of_video|>", "video_end_token": "<|end_of_video|>",
    }  # fmt: skip
    words = words_with(*tokens.values())
    ids = {f"{name}_id": words.convert_tokens_to_ids(token) for name, token in tokens.items()}
    text.pad_token_id = 0
    made = config(vision_config=GLM_VISION | vision, text_config=text.to_dict(), **ids)
    return model(made), processor(
        images(patch_size=8, size={"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 64 * 64}),
        words,
        video(),
        chat_template=chatml("<|begin_of_image|><|image|><|end_of_image|>"),
    )


def glm4v() -> tuple[Any, Any]:
    return _glm(
        hf.Glm4vForConditionalGeneration, hf.Glm4vConfig,
        text_config(hf.Glm4vTextConfig, rope_parameters=MROPE),
        hf.Glm4vProcessor, hf.Glm4vImageProcessorPil, hf.Glm4vVideoProcessor,
    )  # fmt: skip


def glm46v() -> tuple[Any, Any]:
    text = text_config(hf.Glm4vTextConfig, rope_parameters=MROPE)
    return _glm(
        hf.Glm46VForConditionalGeneration, hf.Glm46VConfig, text, hf.Glm46VProcessor,
        hf.Glm46VImageProcessorPil, hf.Glm46VVideoProcessor, model_type="glm4v_vision",
    )  # fmt: skip


def glm4v_moe() -> tuple[Any, Any]:
    text = text_config(
        hf.Glm4vMoeTextConfig, rope_parameters=MROPE | {"partial_rotary_factor": 1.0},
        n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1, n_group=1,
        topk_group=1,
    )  # fmt: skip
    return _glm(
        hf.Glm4vMoeForConditionalGeneration, hf.Glm4vMoeConfig, text, hf.Glm4vProcessor,
        hf.Glm4vImageProcessorPil, hf.Glm4vVideoProcessor,
    )  # fmt: skip


def ovis2() -> tuple[Any, Any]:
    special = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    words = words_with("<image>", "<IMG_ATOM>", *special)
    config = hf.Ovis2Config(
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vocab_size": 30,
            "num_visual_indicator_tokens": 5, "hidden_stride": 2,
        },
        text_config=text_config(hf.Qwen2Config).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(special),
        vocab_size=1024,
        hidden_size=32,
    )  # fmt: skip
    images = hf.Ovis2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = hf.Ovis2Processor(
        images, words, image_seq_length=4, chat_template=chatml("<image>", after_image="\n")
    )
    return hf.Ovis2ForConditionalGeneration(config), processor


def blip2() -> tuple[Any, Any]:
    words = words_with("<image>")
    words.chat_template = chatml("", after_image="\n")
    config = hf.Blip2Config(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "encoder_hidden_size": 24, "vocab_size": 8,
        },
        text_config=text_config(
            hf.OPTConfig, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=512
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.BlipImageProcessorPil(size={"height": 32, "width": 32})
    return hf.Blip2ForConditionalGeneration(config), hf.Blip2Processor(images, words, 4)


def gemma_words(image: str = "<image_soft_token>", audio: str = "<audio_soft_token>") -> Any:
    roles = {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": image,
        "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": audio,
    }  # fmt: skip
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    return tokenizer(
        "spaces", [*special, *roles.values()], roles, bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


def gemma3n() -> tuple[Any, Any]:
    """The config alone: the encoder is timm's, which is no dependency."""
    words = gemma_words()
    text = text_config(
        hf.Gemma3nTextConfig, layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=1024, num_kv_shared_layers=0,
        laurel_rank=4, activation_sparsity_pattern=[0.0] * 2, intermediate_size=[48] * 2,
    )  # fmt: skip
    config = hf.Gemma3nConfig(
        text_config=text, vision_soft_tokens_per_image=4, image_token_id=words.image_token_id,
        audio_token_id=words.audio_token_id,
    )  # fmt: skip
    images = hf.SiglipImageProcessorPil(size={"height": 64, "width": 64})
    processor = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(), images, words, image_seq_length=4,
        chat_template=GEMMA_TEMPLATE.replace("<start_of_image>", "<image_soft_token>"),
    )  # fmt: skip
    return config, processor


def fast_vlm() -> tuple[Any, Any]:
    """The config alone, as of `gemma3n`."""
    words = words_with("<image>")
    config = hf.FastVlmConfig(
        text_config=text_config(hf.Qwen2Config),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 64}), words, patch_size=64,
        vision_feature_select_strategy="full", chat_template=chatml("<image>"),
    )  # fmt: skip
    return config, processor


def perception_lm() -> tuple[Any, Any]:
    """The config alone, as of `gemma3n`."""
    words = words_with(image_token="<|image|>", video_token="<|video|>")
    config = hf.PerceptionLMConfig(
        vision_config={
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {"embed_dim": 24, "img_size": [32, 32], "depth": 2, "global_pool": ""},
        },
        text_config=text_config(hf.LlamaConfig).to_dict(),
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
    )
    images = hf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4)
    processor = hf.PerceptionLMProcessor(
        hf.PerceptionLMVideoProcessor(), images, words, patch_size=8,
        chat_template=chatml("<|image|>"),
    )  # fmt: skip
    return config, processor


DEEPSEEK_V3 = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
    "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_nope_head_dim": 8, "num_key_value_heads": 4, "num_mtp_layers": 0,
}  # fmt: skip

MADE_HERE: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        llava_next, llava_next_video, pixtral, mistral3, vipllava, deepseek_vl, deepseek_vl_hybrid,
        aya_vision, qwen3_vl_moe, qwen3_5_moe, kimi_k25, glm4v, glm46v, glm4v_moe, ovis2, blip2,
        gemma3n, fast_vlm, perception_lm,
    )
}  # fmt: skip
MADE_HERE["deepseek_v3"] = partial(text_family, "DeepseekV3", **DEEPSEEK_V3)
