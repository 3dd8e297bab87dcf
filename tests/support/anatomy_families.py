"""Tiny models of families whose parts are hard to tell, as they are made from their configs.

They have no processor: what is tested with them is which module is what, and what training moves.
Encoders of timm, which is no dependency, are replaced by one with batch norms from transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support.families import MROPE, hf, text_config

IMAGE_TOKEN = 7
NUM_IMAGE_TOKENS = 4


def lfm2_vl() -> Any:
    vision = hf.Siglip2VisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_patches=16, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    text = hf.Lfm2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    config = hf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN,
        projector_hidden_size=40, downsample_factor=2,
    )  # fmt: skip
    return hf.Lfm2VlForConditionalGeneration(config)


def gemma4() -> Any:
    text = hf.Gemma4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = hf.Gemma4VisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=12, patch_size=8, position_embedding_size=16,
    )  # fmt: skip
    audio = hf.Gemma4AudioConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, output_proj_dims=16,
        subsampling_conv_channels=(4, 4),
    )  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=audio, image_token_id=IMAGE_TOKEN
    )
    return hf.Gemma4ForConditionalGeneration(config)


def with_batch_norms() -> Any:
    """A vision config of an encoder with batch norms, in the place of timm's MobileNet."""
    config = hf.MobileNetV2Config(
        depth_multiplier=0.1, min_depth=4, first_layer_is_expansion=True, output_stride=32
    )
    config.hidden_size = 1280
    config.rms_norm_eps, config.vocab_size, config.vocab_offset = 1e-6, 8, 64
    return config


def gemma3n() -> Any:
    text = hf.Gemma3nTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64, num_kv_shared_layers=0, laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"], activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    audio = hf.Gemma3nAudioConfig(
        vocab_size=8, vocab_offset=72, hidden_size=16, conf_num_attention_heads=2,
        conf_num_hidden_layers=1, sscp_conv_channel_size=(4, 4), input_feat_size=16,
    )  # fmt: skip
    config = hf.Gemma3nConfig(text_config=text, audio_config=audio, vision_soft_tokens_per_image=4)
    # A checked field, which takes the config of an encoder from timm only.
    config.__dict__["vision_config"] = with_batch_norms()
    return hf.Gemma3nForConditionalGeneration(config)


def fast_vlm() -> Any:
    config = hf.FastVlmConfig(
        text_config=text_config(hf.Qwen2Config, vocab_size=64), image_token_id=IMAGE_TOKEN
    )
    config.vision_config = with_batch_norms()
    return hf.FastVlmForConditionalGeneration(config)


def ernie4_5_vl() -> Any:
    text = hf.Ernie4_5_VLMoeTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, moe_intermediate_size=[16, 8],
        moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    vision = hf.Ernie4_5_VLMoeVisionConfig(
        hidden_size=24, intermediate_size=32, depth=2, num_heads=2, patch_size=8,
    )  # fmt: skip
    config = hf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision)
    return hf.Ernie4_5_VLMoeForConditionalGeneration(config)


def llama4() -> Any:
    text = hf.Llama4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, intermediate_size_mlp=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_local_experts=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = hf.Llama4VisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, projector_input_dim=20, projector_output_dim=20,
        vision_output_dim=20,
    )  # fmt: skip
    config = hf.Llama4Config(text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN)
    return hf.Llama4ForConditionalGeneration(config)


def got_ocr2() -> Any:
    vision = {
        "hidden_size": 24, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "mlp_dim": 32, "window_size": 2,
        "global_attn_indexes": [1],
    }  # fmt: skip
    config = hf.GotOcr2Config(
        vision_config=vision, text_config=text_config(hf.Qwen2Config, vocab_size=64).to_dict()
    )
    return hf.GotOcr2ForConditionalGeneration(config)


def glm4v() -> Any:
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "depth": 2, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "image_size": 32,
    }  # fmt: skip
    text = text_config(hf.Glm4vTextConfig, vocab_size=64, rope_parameters=MROPE)
    text.pad_token_id = 0
    config = hf.Glm4vConfig(vision_config=vision, text_config=text.to_dict())
    return hf.Glm4vForConditionalGeneration(config)


def ovis2() -> Any:
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vocab_size": 30,
        "num_visual_indicator_tokens": 5,
    }  # fmt: skip
    config = hf.Ovis2Config(
        vision_config=vision, text_config=text_config(hf.Qwen2Config, vocab_size=64).to_dict(),
        vocab_size=64, hidden_size=32,
    )  # fmt: skip
    return hf.Ovis2ForConditionalGeneration(config)


def qwen3_vl_moe() -> Any:
    text = text_config(
        hf.Qwen3VLMoeTextConfig, vocab_size=64, rope_parameters=MROPE, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 48, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = hf.Qwen3VLMoeConfig(text_config=text.to_dict(), vision_config=vision)
    return hf.Qwen3VLMoeForConditionalGeneration(config)


def qwen2_5_omni() -> Any:
    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 48, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    audio = {
        "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "d_model": 16,
        "encoder_ffn_dim": 16, "output_dim": 32,
    }  # fmt: skip
    text = text_config(hf.Qwen2_5OmniTextConfig, vocab_size=64, rope_parameters=MROPE)
    config = hf.Qwen2_5OmniThinkerConfig(
        vision_config=vision, audio_config=audio, text_config=text.to_dict()
    )
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config)


def mllama() -> Any:
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 32, "patch_size": 8, "max_num_tiles": 2,
        "vision_output_dim": 72, "intermediate_layers_indices": [0, 1],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    text = text_config(hf.MllamaTextConfig, vocab_size=64, cross_attention_layers=[1]).to_dict()
    config = hf.MllamaConfig(vision_config=vision, text_config=text | {"pad_token_id": 0})
    return hf.MllamaForConditionalGeneration(config)


def video_llava() -> Any:
    tower = hf.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    config = hf.VideoLlavaConfig(
        vision_config=tower, text_config=text_config(hf.LlamaConfig, vocab_size=64)
    )
    return hf.VideoLlavaForConditionalGeneration(config)


def fuyu() -> Any:
    text = hf.PersimmonConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    config = hf.FuyuConfig(
        text_config=text.to_dict(), patch_size=8, hidden_size=32, vocab_size=64, image_token_id=7
    )
    return hf.FuyuForCausalLM(config)


MORE_FAMILIES: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        lfm2_vl, gemma4, gemma3n, fast_vlm, ernie4_5_vl, llama4, got_ocr2, glm4v, ovis2,
        qwen3_vl_moe, qwen2_5_omni, mllama, video_llava,
    )
}  # fmt: skip


def make_model(name: str) -> Any:
    """A seeded model of a family."""
    torch.manual_seed(0)
    return MORE_FAMILIES[name]().eval()


def pictures_of(name: str, num: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of a family's `get_image_features`: pictures that make four positions each."""
    grid = torch.tensor([[1, 4, 4]] * num)
    if name == "video_llava":
        return {"pixel_values_images": torch.randn(num, 3, 32, 32)}
    if name in ("llama4", "got_ocr2", "ovis2"):
        return {"pixel_values": torch.randn(num, 3, 32, 32)}
    if name in ("fast_vlm", "gemma3n"):
        return {"pixel_values": torch.randn(num, 3, 64, 64)}
    if name in ("glm4v", "qwen3_vl_moe", "qwen2_5_omni"):
        return {"pixel_values": torch.randn(num * 16, 3 * 2 * 8 * 8), "image_grid_thw": grid}
    if name == "ernie4_5_vl":
        return {"pixel_values": torch.randn(num * 16, 3 * 8 * 8), "image_grid_thw": grid}
    if name == "lfm2_vl":
        return {
            "pixel_values": torch.randn(num, 16, 3 * 8 * 8),
            "spatial_shapes": torch.tensor([[4, 4]] * num),
            "pixel_attention_mask": torch.ones(num, 16, dtype=torch.long),
        }
    if name == "gemma4":
        cells = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        return {
            "pixel_values": torch.rand(num, 36, 3 * 8 * 8),
            "image_position_ids": cells[None].repeat(num, 1, 1),
        }
    return {}


def batch_of(name: str, step: int) -> dict[str, torch.Tensor]:
    """A batch of two made-up conversations, each with a picture."""
    torch.manual_seed(100 + step)
    tokens_BT = torch.randint(10, 60, (2, 12))
    tokens_BT[:, 2 : 2 + NUM_IMAGE_TOKENS] = IMAGE_TOKEN
    labels_BT = tokens_BT.clone()
    labels_BT[:, :8] = -100
    ones_BT = torch.ones_like(tokens_BT)
    return {
        "input_ids": tokens_BT,
        "attention_mask": ones_BT,
        "labels": labels_BT,
        **pictures_of(name),
    }
