"""Tiny models of further architectures, each with a peculiarity that a fast way can get wrong.

Soft caps and scales after the head, sliding windows and chunks, recurrent and convolution layers,
learned positions, images that attend in both directions, inputs of their own for each token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.families import (
    GEMMA_TEMPLATE,
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
    if name in ("GPT2", "Bert"):
        model_class = getattr(hf, f"{name}LMHeadModel")
    assert model_class is not None, name
    words = text_words()
    ids = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
    }
    made = text_config(config_class, **(ids | more))
    return model_class(made), words


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
    "gemma3n_text": partial(
        text_family, "Gemma3nText", sliding_window=WINDOW, layer_types=ALTERNATING,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=1024, num_kv_shared_layers=0,
        laurel_rank=4, activation_sparsity_pattern=[0.0, 0.0], final_logit_softcapping=5.0,
        intermediate_size=[48, 48],
    ),
    "nemotron_h": partial(
        text_family, "NemotronH", layers_block_type=["mamba", "attention"], mamba_num_heads=4,
        mamba_head_dim=16, ssm_state_size=8, n_groups=1, conv_kernel=4, chunk_size=16,
    ),
    "zamba2": partial(
        text_family, "Zamba2", layers_block_type=["mamba", "hybrid"], mamba_d_state=8,
        mamba_headdim=16, n_mamba_heads=4, mamba_ngroups=1, chunk_size=16, num_mem_blocks=1,
    ),
    "minimax": partial(
        text_family, "MiniMax", layer_types=["linear_attention", "full_attention"],
        block_size=16, **MIXTURE,
    ),
    "rwkv": partial(text_family, "Rwkv"),
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


def got_ocr2() -> tuple[Any, Any]:
    special = (*IM, "<img>", "</img>", "<imgpad>")
    words = tokenizer("bytes", special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.GotOcr2Config(
        vision_config={
            "hidden_size": 24,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            # Its processor writes 256 tokens for an image.
            "image_size": 256,
            "patch_size": 4,
            "window_size": 4,
            "global_attn_indexes": [],
            "mlp_dim": 32,
        },
        text_config=text_config(hf.Qwen2Config).to_dict(),
        image_token_index=words.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessorPil(size={"height": 256, "width": 256})
    processor = hf.GotOcr2Processor(images, words, chat_template=chatml("<img><imgpad></img>"))
    return hf.GotOcr2ForConditionalGeneration(config), processor


def llama4() -> tuple[Any, Any]:
    special = (*IM, "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>",
               "<|tile_x_separator|>", "<|tile_y_separator|>")  # fmt: skip
    words = tokenizer("bytes", special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.Llama4Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        text_config=text_config(
            hf.Llama4TextConfig,
            attention_chunk_size=WINDOW,
            intermediate_size_mlp=48,
            num_local_experts=2,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
            moe_layers=[1],
        ).to_dict(),
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
    )
    images = hf.Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=4)
    processor = hf.Llama4Processor(images, words, patch_size=8, chat_template=chatml("<|image|>"))
    return hf.Llama4ForConditionalGeneration(config), processor


def mllama() -> tuple[Any, Any]:
    special = (*IM, "<|begin|>", "<|image|>", "<|python_tag|>")
    words = tokenizer(
        "bytes", special, bos_token="<|begin|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    text = text_config(
        hf.MllamaTextConfig, cross_attention_layers=[1], vocab_size=1024, num_hidden_layers=3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ).to_dict()  # fmt: skip
    text.pop("head_dim", None)
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "vision_output_dim": 32,
        },
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    images = hf.MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=2)
    processor = hf.MllamaProcessor(images, words, chat_template=chatml("<|image|>"))
    return hf.MllamaForConditionalGeneration(config), processor


def ernie4_5_vl() -> tuple[Any, Any]:
    special = (*IM, "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>",
               "<|VIDEO_PLACEHOLDER|>", "<|VIDEO_START|>", "<|VIDEO_END|>")  # fmt: skip
    roles = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    words = tokenizer("bytes", special, roles, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {f"{name}_id": words.convert_tokens_to_ids(token) for name, token in roles.items()}
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "intermediate_size": 48,
        },
        text_config=text_config(
            hf.Ernie4_5_VLMoeTextConfig,
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=[16, 16],
            moe_num_shared_experts=1,
            mlp_layer_types=["dense", "sparse"],
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
        ).to_dict(),
        **ids,
    )
    images = hf.Ernie4_5_VLMoeImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    processor = hf.Ernie4_5_VLMoeProcessor(
        images,
        words,
        hf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
        chat_template=chatml("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    return hf.Ernie4_5_VLMoeForConditionalGeneration(config), processor


def gemma4() -> tuple[Any, Any]:
    special = [
        "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<|image>",
        "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>",
    ]  # fmt: skip
    roles = {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    }
    words = tokenizer(
        "spaces", special, roles, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text_config(
            hf.Gemma4TextConfig,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
            final_logit_softcapping=5.0,
            use_bidirectional_attention="vision",
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=1024,
            global_head_dim=8,
            pad_token_id=0,
        ).to_dict(),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "patch_size": 4,
            "position_embedding_size": 512,
        },
        audio_config=None,
        image_token_id=words.convert_tokens_to_ids("<|image|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        boi_token_id=words.convert_tokens_to_ids("<|image>"),
        eoi_token_id=words.convert_tokens_to_ids("<image|>"),
        audio_token_id=words.convert_tokens_to_ids("<|audio|>"),
        boa_token_id=words.convert_tokens_to_ids("<|audio>"),
        eoa_token_index=words.convert_tokens_to_ids("<audio|>"),
    )
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        words,
        hf.Gemma4VideoProcessor(patch_size=4),
        chat_template=GEMMA_TEMPLATE.replace("<start_of_image>", "<|image|>"),
    )
    return hf.Gemma4ForConditionalGeneration(config), processor


def granite4_vision() -> tuple[Any, Any]:
    words = tokenizer("bytes", [*IM, "<image>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    pins = [[32, 64], [64, 32], [64, 64]]
    config = hf.Granite4VisionConfig(
        vision_config=siglip(vision_use_head=False).to_dict(),
        text_config=text_config(
            hf.Granite4VisionTextConfig, logits_scaling=8.0, num_hidden_layers=4
        ).to_dict(),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pins,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [0, 1]],
        spatial_target_layers=[2, 3],
        qformer_config={
            "hidden_size": 24,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "encoder_hidden_size": 24,
        },
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=pins,
    )
    processor = hf.Granite4VisionProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="full", downsample_rate="1/2",
        chat_template=chatml("<image>", after_image="\n"),
    )  # fmt: skip
    return hf.Granite4VisionForConditionalGeneration(config), processor


def minicpmv4_6() -> tuple[Any, Any]:
    special = (*IM, "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>",
               "<|image_pad|>", "<|video_pad|>")  # fmt: skip
    roles = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    words = tokenizer("bytes", special, roles, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    text = text_config(
        hf.Qwen3_5TextConfig, layer_types=["linear_attention", "full_attention"], **LINEAR
    )
    config = hf.MiniCPMV4_6Config(
        text_config=text.to_dict(),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "insert_layer_id": 1,
        },
        insert_layer_id=1,
        image_size=64,
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    images = hf.MiniCPMV4_6ImageProcessorPil(
        max_slice_nums=4, scale_resolution=64, patch_size=8, use_image_id=False
    )
    processor = hf.MiniCPMV4_6Processor(
        images, hf.MiniCPMV4_6VideoProcessor(), words, chat_template=chatml("<|image_pad|>")
    )
    return hf.MiniCPMV4_6ForConditionalGeneration(config), processor


VISION_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_5": qwen3_5,
    "internvl_gpt_oss": internvl_gpt_oss,
    "lfm2_vl": lfm2_vl,
    "cohere2_vision": cohere2_vision,
    "got_ocr2": got_ocr2,
    "llama4": llama4,
    "mllama": mllama,
    "ernie4_5_vl": ernie4_5_vl,
    "gemma4": gemma4,
    "granite4_vision": granite4_vision,
    "minicpmv4_6": minicpmv4_6,
}

MORE_FAMILIES = TEXT_FAMILIES | VISION_FAMILIES
