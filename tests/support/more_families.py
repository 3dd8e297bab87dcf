"""Tiny models of further architectures, each with a peculiarity that a fast way can get wrong.

Soft caps and scales after the head, sliding windows and chunks, recurrent and convolution layers,
learned positions, images that attend in both directions, inputs of their own for each token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.families import (
    IM,
    QWEN_TEMPLATE,
    _qwen_ids,
    _qwen_words,
    chatml,
    hf,
    siglip,
    text_config,
    tokenizer,
)

TEXT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_words() -> Any:
    words = tokenizer("bytes", IM, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    words.chat_template = TEXT_TEMPLATE
    return words


def text_family(name: str, **more: Any) -> tuple[Any, Any]:
    """Return a language model of a family, by the names of its classes in transformers."""
    config_class, model_class = getattr(hf, f"{name}Config"), None
    model_class = getattr(hf, f"{name.removesuffix('Text')}ForCausalLM", None)
    if name == "GPT2":
        model_class = hf.GPT2LMHeadModel
    assert model_class is not None, name
    words = text_words()
    ids = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
    }
    return model_class(text_config(config_class, **(ids | more))), words


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
WINDOW = 24
ALTERNATING = ["sliding_attention", "full_attention"]

TEXT_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3": partial(text_family, "Qwen3"),
    "phi3": partial(text_family, "Phi3", pad_token_id=0),
    "cohere2": partial(text_family, "Cohere2", sliding_window=WINDOW, layer_types=ALTERNATING),
    "granite": partial(text_family, "Granite", logits_scaling=8.0, embedding_multiplier=3.0),
    "gemma2": partial(
        text_family, "Gemma2", final_logit_softcapping=5.0, sliding_window=WINDOW,
        layer_types=ALTERNATING,
    ),
    "nanochat": partial(text_family, "NanoChat"),
    "gemma3_text": partial(
        text_family, "Gemma3Text", sliding_window=WINDOW, layer_types=ALTERNATING
    ),
    "mistral": partial(text_family, "Mistral", sliding_window=WINDOW),
    "olmo3": partial(text_family, "Olmo3", sliding_window=WINDOW, layer_types=ALTERNATING),
    "gpt_oss": partial(
        text_family, "GptOss", sliding_window=WINDOW, layer_types=ALTERNATING, **MIXTURE
    ),
    "granitemoehybrid": partial(
        text_family, "GraniteMoeHybrid", layer_types=["mamba", "attention"], **MIXTURE, **MAMBA,
        shared_intermediate_size=32,
    ),
    "falcon_h1": partial(
        text_family, "FalconH1", **MAMBA, mamba_d_ssm=64, lm_head_multiplier=0.25
    ),
    "qwen3_next": partial(
        text_family, "Qwen3Next", layer_types=["linear_attention", "full_attention"], **MOE,
        **LINEAR, shared_expert_intermediate_size=16,
    ),
    "lfm2": partial(text_family, "Lfm2", layer_types=["conv", "full_attention"]),
    "jamba": partial(
        text_family, "Jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, use_mamba_kernels=False,
        mamba_d_state=8, mamba_dt_rank=4,
    ),
    "llama4_text": partial(
        text_family, "Llama4Text", attention_chunk_size=WINDOW, intermediate_size_mlp=48,
        num_local_experts=2, layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0], moe_layers=[1],
    ),
    "gpt2": partial(text_family, "GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gptj": partial(
        text_family, "GPTJ", n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=512
    ),
    "mamba": partial(text_family, "Mamba", state_size=8),
    "mamba2": partial(
        text_family, "Mamba2", state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=16
    ),
    "bloom": partial(text_family, "Bloom", n_head=4, n_layer=2),
    "bamba": partial(text_family, "Bamba", attn_layer_indices=[1], **MAMBA),
    "recurrent_gemma": partial(
        text_family, "RecurrentGemma", block_types=["recurrent", "attention"],
        attention_window_size=WINDOW, lru_width=32,
    ),
    "exaone4": partial(text_family, "Exaone4", sliding_window=WINDOW, layer_types=ALTERNATING),
    "opt": partial(
        text_family, "OPT", ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=1024
    ),
}  # fmt: skip


def qwen3_5() -> tuple[Any, Any]:
    words = _qwen_words()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2],
            "partial_rotary_factor": 1.0}  # fmt: skip
    text = text_config(
        hf.Qwen3_5TextConfig,
        layer_types=["linear_attention", "full_attention"],
        rope_parameters=rope,
        **LINEAR,
    )
    config = hf.Qwen3_5Config(
        text_config=text.to_dict(),
        vision_config={
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "depth": 2,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
        },
        **_qwen_ids(words),
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    processor = hf.Qwen3VLProcessor(
        images, words, hf.Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE
    )
    return hf.Qwen3_5ForConditionalGeneration(config), processor


def _internvl(text: Any) -> tuple[Any, Any]:
    special = (*IM, "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    roles = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer("bytes", special, roles, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.InternVLConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        text_config=text.to_dict(),
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = hf.InternVLProcessor(
        images,
        words,
        hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>", after_image="\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def internvl_gpt_oss() -> tuple[Any, Any]:
    return _internvl(
        text_config(hf.GptOssConfig, sliding_window=WINDOW, layer_types=ALTERNATING, **MIXTURE)
    )


def lfm2_vl() -> tuple[Any, Any]:
    special = (*IM, "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    roles = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    words = tokenizer("bytes", special, roles, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.Lfm2VlConfig(
        text_config=text_config(hf.Lfm2Config, layer_types=["conv", "full_attention"]).to_dict(),
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
            "num_patches": 16,
            "vision_use_head": False,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )
    images = hf.Lfm2VlImageProcessor(
        do_image_splitting=False,
        tile_size=32,
        min_image_tokens=2,
        max_image_tokens=16,
        encoder_patch_size=8,
        max_num_patches=64,
    )
    processor = hf.Lfm2VlProcessor(images, words, chat_template=chatml("<image>"))
    return hf.Lfm2VlForConditionalGeneration(config), processor


def cohere2_vision() -> tuple[Any, Any]:
    special = (*IM, "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>",
               "<|TILE|>", "<|TILE_GLOBAL|>", "<image>")  # fmt: skip
    roles = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "tile_token": "<|TILE|>",
        "tile_global_token": "<|TILE_GLOBAL|>",
    }
    words = tokenizer("bytes", special, roles, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.Cohere2VisionConfig(
        text_config=text_config(
            hf.Cohere2Config, sliding_window=WINDOW, layer_types=ALTERNATING
        ).to_dict(),
        vision_config=siglip(vision_use_head=False).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=32,
        downsample_factor=2,
    )
    images = hf.Cohere2VisionImageProcessorFast(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4,
        patch_size=2,  # Tokens of a side of a tile, as its processor reads it.
    )  # fmt: skip
    processor = hf.Cohere2VisionProcessor(images, words, chat_template=chatml("<|IMG_PATCH|>"))
    return hf.Cohere2VisionForConditionalGeneration(config), processor


VISION_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_5": qwen3_5,
    "internvl_gpt_oss": internvl_gpt_oss,
    "lfm2_vl": lfm2_vl,
    "cohere2_vision": cohere2_vision,
}

MORE_FAMILIES = TEXT_FAMILIES | VISION_FAMILIES
