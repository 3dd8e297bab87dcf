"""Tiny models of families that no table had before; see `family_table`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import normalizers

from tests.support.families import (
    GEMMA_TEMPLATE,
    IM,
    MROPE,
    chatml,
    hf,
    siglip,
    text_config,
    tokenizer,
)
from tests.support.more_families import LINEAR, text_family
from tests.support.table_families import (
    ENDS,
    QWEN3_VISION,
    _glm,
    _qwen_like,
    clip,
    gemma_words,
    pixtral_vision,
    words_with,
)

SMALL = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
VQ = {
    "embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32,
    "channel_multiplier": [1, 1], "num_res_blocks": 1,
}  # fmt: skip


def aria() -> tuple[Any, Any]:
    words = words_with(image_token="<|img|>")
    config = hf.AriaConfig(
        vision_config={
            "model_type": "idefics3_vision", "hidden_size": 24, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 980, "patch_size": 70,
        },
        text_config=text_config(
            hf.AriaTextConfig, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1,
            pad_token_id=0,
        ).to_dict(),
        image_token_index=words.image_token_id,
        projector_patch_to_query_dict={49: 4, 196: 8},
    )  # fmt: skip
    images = hf.AriaImageProcessorPil(max_image_size=490, min_image_size=70)
    processor = hf.AriaProcessor(
        images, words, size_conversion={490: 4, 980: 8}, chat_template=chatml("<|img|>")
    )
    return hf.AriaForConditionalGeneration(config), processor


def lighton_ocr() -> tuple[Any, Any]:
    words = words_with(
        image_token="<|image_pad|>", image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )  # fmt: skip
    config = hf.LightOnOcrConfig(
        vision_config=pixtral_vision(),
        text_config=text_config(hf.Qwen3Config).to_dict(),
        image_token_id=words.image_token_id,
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=16)
    processor = hf.LightOnOcrProcessor(
        images, words, patch_size=8, chat_template=chatml("<|image_pad|>")
    )
    return hf.LightOnOcrForConditionalGeneration(config), processor


QWEN2_5_VISION = {
    "hidden_size": 32, "num_heads": 2, "patch_size": 8, "depth": 2, "intermediate_size": 48,
    "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1],
}  # fmt: skip


def exaone4_5() -> tuple[Any, Any]:
    text = text_config(
        hf.Exaone4Config, sliding_window=24, layer_types=["sliding_attention", "full_attention"]
    )
    vision = QWEN2_5_VISION | {"model_type": "exaone4_5_vision", "num_key_value_heads": 2}
    return _qwen_like(
        hf.Exaone4_5_ForConditionalGeneration,
        lambda **ids: hf.Exaone4_5_Config(
            text_config=text.to_dict(), vision_config=vision,
            image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
        ),
        hf.Exaone4_5_Processor, hf.Qwen2VLVideoProcessor,
    )  # fmt: skip


def hyperclovax_vision_v2() -> tuple[Any, Any]:
    vision = QWEN2_5_VISION | {"model_type": "qwen2_5_vl_vision"}
    return _qwen_like(
        hf.HyperCLOVAXVisionV2ForConditionalGeneration,
        lambda **ids: hf.HyperCLOVAXVisionV2Config(
            text_config=text_config(hf.HyperCLOVAXConfig).to_dict(), vision_config=vision,
            image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
        ),
        partial(hf.HyperCLOVAXVisionV2Processor), hf.Qwen2VLVideoProcessor,
    )  # fmt: skip


def glm_ocr() -> tuple[Any, Any]:
    return _glm(
        hf.GlmOcrForConditionalGeneration, hf.GlmOcrConfig,
        text_config(hf.GlmOcrTextConfig, rope_parameters=MROPE),
        hf.Glm46VProcessor, hf.Glm46VImageProcessorPil, hf.Glm46VVideoProcessor,
    )  # fmt: skip


def hunyuan_vl() -> tuple[Any, Any]:
    words = words_with(
        image_token="<img>", image_start_token="<img_start>", image_end_token="<img_end>"
    )
    config = hf.HunYuanVLConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "patch_size": 8, "out_hidden_size": 32,
            "text_hidden_size": 32, "max_image_size": 64, "min_image_size": 16,
        },
        text_config=text_config(
            hf.HunYuanVLTextConfig,
            rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1],
            },
        ).to_dict(),
        image_token_id=words.image_token_id,
        im_start_id=words.image_start_token_id,
        im_end_id=words.image_end_token_id,
        im_newline_id=words.image_token_id,
    )  # fmt: skip
    images = hf.HunYuanVLImageProcessorPil(patch_size=8, size=SMALL)
    processor = hf.HunYuanVLProcessor(
        images, words, chat_template=chatml("<img_start><img><img_end>")
    )
    return hf.HunYuanVLForConditionalGeneration(config), processor


def video_llama_3() -> tuple[Any, Any]:
    return _qwen_like_with(
        hf.VideoLlama3ImageProcessorPil(patch_size=8, size=SMALL),
        hf.VideoLlama3ForConditionalGeneration,
        lambda **ids: hf.VideoLlama3Config(
            text_config=text_config(hf.Qwen2Config).to_dict(),
            vision_config={
                "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "patch_size": 8,
            },
            image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
        ),
        hf.VideoLlama3Processor, hf.VideoLlama3VideoProcessor,
    )  # fmt: skip


def _qwen_like_with(images: Any, *parts: Any) -> tuple[Any, Any]:
    model, processor = _qwen_like(*parts)
    processor.image_processor = images
    return model, processor


def paddleocr_vl() -> tuple[Any, Any]:
    words = words_with(
        "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", image_token="<|image_pad|>"
    )
    config = hf.PaddleOCRVLConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        text_config=text_config(hf.PaddleOCRTextConfig, rope_parameters=MROPE).to_dict(),
        image_token_id=words.image_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    images = hf.PaddleOCRVLImageProcessorPil(patch_size=8, size=SMALL)
    template = chatml("<|vision_start|><|image_pad|><|vision_end|>")
    processor = hf.PaddleOCRVLProcessor(images, words, chat_template=template)
    return hf.PaddleOCRVLForConditionalGeneration(config), processor


def qianfan_ocr() -> tuple[Any, Any]:
    words = words_with(
        "<image>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
    )  # fmt: skip
    config = hf.QianfanOCRConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": [32, 32], "patch_size": [8, 8],
        },
        text_config=text_config(hf.Qwen3Config).to_dict(),
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = hf.QianfanOCRProcessor(
        images, words, image_seq_length=4, chat_template=chatml("<image>", after_image="\n")
    )
    return hf.QianfanOCRForConditionalGeneration(config), processor


def deepseek_ocr2() -> tuple[Any, Any]:
    words = words_with(image_token="<image>")
    encoder = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8,
    }  # fmt: skip
    config = hf.DeepseekOcr2Config(
        vision_config={
            "sam_config": {
                "hidden_size": 24, "output_channels": 16, "num_hidden_layers": 2,
                "num_attention_heads": 2, "patch_size": 16, "global_attn_indexes": [],
                "mlp_dim": 32, "downsample_channels": [24, 32],
            },
            "encoder_config": encoder,
        },
        text_config=text_config(
            hf.DeepseekOcr2TextConfig, n_routed_experts=4, n_shared_experts=1,
            num_experts_per_tok=2, moe_intermediate_size=16, mlp_layer_types=["dense", "sparse"],
        ).to_dict(),
        image_token_id=words.image_token_id,
    )  # fmt: skip
    # Its numbers of queries belong to these sizes.
    images = hf.DeepseekOcr2ImageProcessorPil()
    processor = hf.DeepseekOcr2Processor(images, words, chat_template=chatml("<image>"))
    return hf.DeepseekOcr2ForConditionalGeneration(config), processor


def cohere_compass() -> tuple[Any, Any]:
    tokens = ("<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>")
    words = words_with(*tokens)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = hf.CohereCompassConfig(
        vision_config=QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]},
        text_config=text_config(
            hf.CohereCompassTextConfig, sliding_window=24, logit_scale=0.25,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={kind: MROPE for kind in ("sliding_attention", "full_attention")},
        ).to_dict(),
        **dict(zip(names, words.convert_tokens_to_ids(list(tokens)), strict=True)),
    )  # fmt: skip
    images = hf.CohereCompassImageProcessorPil(patch_size=8, size=SMALL)
    processor = hf.CohereCompassProcessor(
        images, words, hf.Qwen3VLVideoProcessor(),
        chat_template=chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    )  # fmt: skip
    return hf.CohereCompassForConditionalGeneration(config), processor


def janus() -> tuple[Any, Any]:
    words = words_with(
        image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>"
    )
    config = hf.JanusConfig(
        vision_config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
            "patch_size": 8, "projection_dim": 32, "num_image_tokens": 16, "mlp_ratio": 2,
        },
        vq_config=VQ | {"num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32},
        text_config=text_config(hf.LlamaConfig).to_dict(),
        image_token_id=words.image_token_id,
    )  # fmt: skip
    images = hf.JanusImageProcessorPil(size={"height": 32, "width": 32}, min_size=4)
    processor = hf.JanusProcessor(
        images, words, num_image_tokens=16, chat_template=chatml("<image_placeholder>")
    )
    return hf.JanusForConditionalGeneration(config), processor


def emu3() -> tuple[Any, Any]:
    codes = [f"<|visual token {k:06d}|>" for k in range(16)]
    words = words_with(
        *codes, image_token="<image>", boi_token="<|image start|>", eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>", eof_token="<|extra_201|>",
        eol_token="<|extra_200|>",
    )  # fmt: skip
    words.bos_token = "<|im_start|>"
    some = {token: words.convert_tokens_to_ids(token) for token in [*codes, "<image>",
            "<|extra_200|>", "<|extra_201|>"]}  # fmt: skip
    config = hf.Emu3Config(
        vq_config={
            "codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "hidden_size": 32,
            "attn_resolutions": [],
        },
        text_config=text_config(hf.Emu3TextConfig, pad_token_id=0).to_dict(),
        vocabulary_map=some,
    )  # fmt: skip
    images = hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64)
    processor = hf.Emu3Processor(images, words, chat_template=chatml("<image>"))
    return hf.Emu3ForConditionalGeneration(config), processor


def chameleon() -> tuple[Any, Any]:
    codes = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in str(k)) + "Z" for k in range(16)]
    words = words_with(*codes, image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>")
    words.sep_token = "<|endoftext|>"
    words.chat_template = chatml("<image>")
    some = {token: words.convert_tokens_to_ids(token) for token in [*codes, "<image>"]}
    config = text_config(
        hf.ChameleonConfig,
        vq_config=VQ | {"resolution": 32, "attn_resolutions": []},
        vocabulary_map=some,
        num_key_value_heads=4,
    )
    images = hf.ChameleonImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return hf.ChameleonForConditionalGeneration(config), hf.ChameleonProcessor(images, words, 256)


def _blip_parts() -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        "qformer_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "encoder_hidden_size": 24, "vocab_size": 1024,
        },
        "text_config": text_config(hf.LlamaConfig).to_dict(),
        "num_query_tokens": 4,
    }  # fmt: skip


def instructblip() -> tuple[Any, Any]:
    words, inner = words_with("<image>"), words_with()
    words.chat_template = chatml("")
    image_id = words.convert_tokens_to_ids("<image>")
    config = hf.InstructBlipConfig(**_blip_parts(), image_token_index=image_id)
    images = hf.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.InstructBlipProcessor(images, words, inner, 4)
    return hf.InstructBlipForConditionalGeneration(config), processor


def kosmos2() -> tuple[Any, Any]:
    words = words_with()
    words.bos_token, words.unk_token = "<|im_start|>", "<|endoftext|>"
    words.chat_template = chatml("<image>")
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = hf.Kosmos2Processor(images, words, 4)
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": 1024, "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 4,
        },
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        latent_query_num=64,
    )  # fmt: skip
    return hf.Kosmos2ForConditionalGeneration(config), processor


def fuyu() -> tuple[Any, Any]:
    words = tokenizer("spaces", [*IM, "|SPEAKER|", "|NEWLINE|", "<s>"], bos_token="<s>", **ENDS)
    # As Llama's, it begins a text with a space.
    words.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    words.chat_template = chatml("")
    config = hf.FuyuConfig(
        text_config=text_config(hf.PersimmonConfig).to_dict(), patch_size=8, hidden_size=32,
        vocab_size=1024, image_token_id=words.convert_tokens_to_ids("|SPEAKER|"),
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    )  # fmt: skip
    images = hf.FuyuImageProcessorPil(
        size={"height": 64, "width": 64}, patch_size={"height": 8, "width": 8}
    )
    return hf.FuyuForCausalLM(config), hf.FuyuProcessor(images, words)


def video_llava() -> tuple[Any, Any]:
    words = words_with(image_token="<image>", video_token="<video>")
    config = hf.VideoLlavaConfig(
        vision_config=clip().to_dict(),
        text_config=text_config(hf.LlamaConfig).to_dict(),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
    )
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**crop), hf.VideoLlavaVideoProcessor(**crop), words,
        patch_size=8, chat_template=chatml("<image>", after_image="\n"),
    )  # fmt: skip
    return hf.VideoLlavaForConditionalGeneration(config), processor


def florence2() -> tuple[Any, Any]:
    words = words_with(image_token="<image>")
    words.chat_template = chatml("<image>")
    words.bos_token = "<|im_start|>"
    config = hf.Florence2Config(
        vision_config={
            "depths": [1], "patch_size": [7], "patch_stride": [4], "patch_padding": [3],
            "patch_prenorm": [False], "embed_dim": [16], "num_heads": [2], "num_groups": [2],
            "projection_dim": 32, "window_size": 4,
        },
        text_config={
            "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "vocab_size": 1024,
        },
        image_token_id=words.image_token_id,
    )  # fmt: skip
    images = hf.CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    )
    images.image_seq_length = 4
    return hf.Florence2ForConditionalGeneration(config), hf.Florence2Processor(images, words)


def qwen2_5_omni_thinker() -> tuple[Any, Any]:
    words = words_with(
        image_token="<|IMAGE|>", audio_token="<|AUDIO|>", video_token="<|VIDEO|>",
        vision_bos_token="<|vision_bos|>", vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>",
    )  # fmt: skip
    config = hf.Qwen2_5OmniThinkerConfig(
        vision_config=QWEN2_5_VISION,
        audio_config={
            "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "d_model": 16,
            "encoder_ffn_dim": 16, "output_dim": 32,
        },
        text_config=text_config(hf.Qwen2_5OmniTextConfig, rope_parameters=MROPE).to_dict(),
        image_token_index=words.image_token_id,
        audio_token_index=words.audio_token_id,
        video_token_index=words.video_token_id,
        vision_start_token_id=words.vision_bos_token_id,
        vision_end_token_id=words.vision_eos_token_id,
    )  # fmt: skip
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, size=SMALL)
    template = chatml("<|vision_bos|><|IMAGE|><|vision_eos|>")
    processor = hf.Qwen2_5OmniProcessor(
        images, hf.Qwen2VLVideoProcessor(), hf.WhisperFeatureExtractor(feature_size=8), words,
        chat_template=template,
    )  # fmt: skip
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


def gemma4_unified() -> tuple[Any, Any]:
    words = gemma_words("<|image|>", "<|audio|>")
    config = hf.Gemma4UnifiedConfig(
        text_config=text_config(
            hf.Gemma4UnifiedTextConfig, sliding_window=24,
            layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=5.0,
            global_head_dim=8, pad_token_id=0,
        ).to_dict(),
        vision_config={
            "patch_size": 4, "mm_embed_dim": 24, "mm_posemb_size": 64, "output_proj_dims": 24,
        },
        audio_config=None,
        image_token_id=words.image_token_id,
        audio_token_id=words.audio_token_id,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
    )  # fmt: skip
    processor = hf.Gemma4UnifiedProcessor(
        hf.Gemma4UnifiedAudioFeatureExtractor(),
        hf.Gemma4UnifiedImageProcessor(patch_size=4, max_soft_tokens=70),
        words,
        hf.Gemma4UnifiedVideoProcessor(patch_size=4),
        chat_template=GEMMA_TEMPLATE.replace("<start_of_image>", "<|image|>"),
    )
    return hf.Gemma4UnifiedForConditionalGeneration(config), processor


def cosmos3_edge() -> tuple[Any, Any]:
    return _qwen_like_with(
        hf.Cosmos3EdgeImageProcessorPil(patch_size=8, size=SMALL),
        hf.Cosmos3EdgeForConditionalGeneration,
        partial(
            hf.Cosmos3EdgeConfig,
            text_config=text_config(hf.Cosmos3EdgeTextConfig, rope_parameters=MROPE).to_dict(),
            vision_config={
                "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "patch_size": 8, "num_patches": 16,
            },
            projector_hidden_size=32,
        ),
        hf.Cosmos3EdgeProcessor, hf.Qwen3VLVideoProcessor,
    )  # fmt: skip


def qwen4_exp() -> tuple[Any, Any]:
    text = text_config(
        hf.Qwen4ExpTextConfig, layer_types=["linear_attention", "full_attention"],
        rope_parameters=MROPE | {"partial_rotary_factor": 1.0}, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        hc_count=2, hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8,
        indexer_budget=64, indexer_compress_ratio=4, **LINEAR,
    ).to_dict()  # fmt: skip
    return _qwen_like(
        hf.Qwen4ExpForConditionalGeneration,
        partial(hf.Qwen4ExpConfig, text_config=text, vision_config=QWEN3_VISION),
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    )


def muse_glimmer() -> tuple[Any, Any]:
    tokens = ("<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_start|>",
              "<|vid_frame_separator|>", "<|vid_end|>")  # fmt: skip
    words = words_with(*tokens)
    config = hf.MuseGlimmerConfig(
        vision_config={
            "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8, "num_attention_heads": 2,
            "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32,
            "max_position_embeddings": 64,
        },
        text_config=text_config(
            hf.MuseGlimmerTextConfig, sliding_window=24,
            layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=5.0,
        ).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<|patch|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        out_hidden_size=96,
        projector_hidden_size=32,
    )  # fmt: skip
    processor = hf.MuseGlimmerProcessor(
        hf.MuseGlimmerImageProcessor(patch_size=8, max_image_tokens=16),
        hf.MuseGlimmerVideoProcessor(patch_size=8), words, chat_template=chatml("<|patch|>"),
    )  # fmt: skip
    return hf.MuseGlimmerForConditionalGeneration(config), processor


def minimax_m3_vl() -> tuple[Any, Any]:
    kind = hf.MiniMaxM3VLProcessor
    tokens = (kind.IMAGE_TOKEN, kind.VIDEO_TOKEN, kind.VISION_START_TOKEN, kind.VISION_END_TOKEN)
    words = words_with(*tokens)
    config = hf.MiniMaxM3VLConfig(
        vision_config={
            "model_type": "minimax_m3_vl_vision", "hidden_size": 24, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
        },
        text_config=text_config(
            hf.MiniMaxM3VLTextConfig, num_local_experts=4, num_experts_per_tok=2,
            dense_intermediate_size=48, shared_intermediate_size=32, rotary_dim=4,
            mlp_layer_types=["dense", "sparse"], index_n_heads=2, index_head_dim=8,
            index_block_size=16, index_topk_blocks=2,
        ).to_dict(),
        image_token_index=words.convert_tokens_to_ids(kind.IMAGE_TOKEN),
        video_token_index=words.convert_tokens_to_ids(kind.VIDEO_TOKEN),
        projector_hidden_size=32,
    )  # fmt: skip
    processor = kind(
        hf.MiniMaxM3VLImageProcessor(patch_size=8, min_pixels=256, max_pixels=4096), words,
        hf.MiniMaxM3VLVideoProcessor(patch_size=8), chat_template=chatml(kind.IMAGE_TOKEN),
    )  # fmt: skip
    return hf.MiniMaxM3SparseForConditionalGeneration(config), processor


def glm5_next() -> tuple[Any, Any]:
    text = text_config(
        hf.Glm5NextTextConfig, num_key_value_heads=4, moe_intermediate_size=16,
        n_routed_experts=4, num_experts_per_tok=2, kv_lora_rank=8, q_lora_rank=16, v_head_dim=8,
        qk_nope_head_dim=8, index_topk=16, index_head_dim=8, index_n_heads=2, linear_head_dim=8,
        linear_num_heads=4, hc_mult=2, index_kpool=4,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    model, processor = _glm(
        hf.Glm5NextForConditionalGeneration, hf.Glm5NextConfig, text, hf.Glm5NextProcessor,
        lambda **_: hf.Glm5NextImageProcessorPil(
            patch_size=8, min_image_tokens=1, max_image_tokens=16
        ),
        hf.Glm5NextVideoProcessor, projection_intermediate_size=32,
    )  # fmt: skip
    return model, processor


def step3p7() -> tuple[Any, Any]:
    words = words_with(
        "<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>"
    )
    config = hf.Step3p7Config(
        vision_config={
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
            "patch_size": 8, "mlp_ratio": 2.0, "max_position_embeddings": 64,
        },
        text_config=text_config(
            hf.Step3p7TextConfig, sliding_window=24, num_local_experts=4, n_routed_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=16, share_expert_dim=16,
            layer_types=["sliding_attention", "full_attention"],
            mlp_layer_types=["dense", "sparse"], num_sliding_attention_heads=4,
        ).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<im_patch>"),
    )  # fmt: skip
    images = hf.Step3p7ImageProcessor(
        size={"height": 64, "width": 64}, patch_size=32, vision_patch_size=8, max_image_size=128
    )
    processor = hf.Step3p7Processor(images, words, chat_template=chatml("<im_patch>"))
    return hf.Step3p7ForConditionalGeneration(config), processor


def idefics() -> tuple[Any, Any]:
    words = words_with("<fake_token_around_image>", image_token="<image>")
    words.bos_token, words.unk_token = "<|im_start|>", "<|endoftext|>"
    words.chat_template = chatml("<fake_token_around_image><image><fake_token_around_image>")
    config = text_config(
        hf.IdeficsConfig, additional_vocab_size=2, cross_layer_interval=1, use_resampler=False,
        vision_config={
            "embed_dim": 24, "image_size": 32, "intermediate_size": 32, "patch_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 2,
        },
    )  # fmt: skip
    processor = hf.IdeficsProcessor(hf.IdeficsImageProcessorPil(image_size=32), words)
    return hf.IdeficsForVisionText2Text(config), processor


def blip() -> tuple[Any, Any]:
    words = words_with()
    words.chat_template = chatml("")
    config = hf.BlipConfig(
        text_config={
            "vocab_size": 1024, "hidden_size": 32, "encoder_hidden_size": 24,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        },
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
    )  # fmt: skip
    images = hf.BlipImageProcessorPil(size={"height": 32, "width": 32})
    return hf.BlipForConditionalGeneration(config), hf.BlipProcessor(images, words)


def git() -> tuple[Any, Any]:
    words = words_with()
    words.chat_template = chatml("")
    config = hf.GitConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48,
    )  # fmt: skip
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return hf.GitForCausalLM(config), hf.GitProcessor(images, words)


def t5gemma2() -> tuple[Any, Any]:
    words = gemma_words("<start_of_image>")
    shared = text_config(hf.Gemma3TextConfig, sliding_window=24).to_dict()
    shared.pop("model_type")
    text = {key: value for key, value in shared.items() if key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window", "layer_types",
    )}  # fmt: skip
    config = hf.T5Gemma2Config(
        encoder={
            "text_config": text, "vision_config": siglip(vision_use_head=False).to_dict(),
            "mm_tokens_per_image": 4,
        },
        decoder=text,
    )  # fmt: skip
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.Gemma3Processor(images, words, chat_template=GEMMA_TEMPLATE, image_seq_length=4)
    return hf.T5Gemma2ForConditionalGeneration(config), processor


def diffusion_gemma() -> tuple[Any, Any]:
    words = gemma_words("<|image|>", "<|audio|>")
    text = text_config(
        hf.DiffusionGemmaTextConfig, sliding_window=24, pad_token_id=0, global_head_dim=8,
        layer_types=["sliding_attention", "full_attention"], num_experts=4, top_k_experts=2,
        moe_intermediate_size=16,
    ).to_dict()  # fmt: skip
    config = hf.DiffusionGemmaConfig(
        text_config=text,
        vision_config={
            "model_type": "gemma4_vision", "hidden_size": 24, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 12, "patch_size": 4, "position_embedding_size": 512,
        },
        image_token_id=words.image_token_id,
        canvas_length=16,
    )  # fmt: skip
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        words,
        hf.Gemma4VideoProcessor(patch_size=4),
        chat_template=GEMMA_TEMPLATE.replace("<start_of_image>", "<|image|>"),
    )
    return hf.DiffusionGemmaForBlockDiffusion(config), processor


NEW_VISION: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        aria, lighton_ocr, exaone4_5, hyperclovax_vision_v2, glm_ocr, hunyuan_vl, video_llama_3,
        paddleocr_vl, qianfan_ocr, deepseek_ocr2, cohere_compass, janus, emu3, chameleon,
        instructblip, kosmos2, fuyu, video_llava, florence2, qwen2_5_omni_thinker, gemma4_unified,
        cosmos3_edge, qwen4_exp, muse_glimmer, minimax_m3_vl, glm5_next, step3p7, idefics, blip,
        git, t5gemma2, diffusion_gemma,
    )
}  # fmt: skip

NEW_TEXT: dict[str, Callable[[], tuple[Any, Any]]] = {
    "smollm3": partial(text_family, "SmolLM3", pad_token_id=0),
    "olmo2": partial(text_family, "Olmo2"),
    "glm4": partial(text_family, "Glm4", pad_token_id=0),
    "ernie4_5": partial(text_family, "Ernie4_5"),
    "seed_oss": partial(text_family, "SeedOss"),
    "gpt_neo": partial(
        text_family, "GPTNeo", num_layers=2, num_heads=4, window_size=24,
        attention_types=[[["global", "local"], 1]],
    ),
    "gpt_bigcode": partial(text_family, "GPTBigCode", n_embd=32, n_layer=2, n_head=4),
    "mpt": partial(text_family, "Mpt", d_model=32, n_heads=4, n_layers=2),
    "xglm": partial(
        text_family, "XGLM", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4
    ),
    "bert": partial(text_family, "Bert"),
}  # fmt: skip

NEW_FAMILIES = NEW_VISION | NEW_TEXT
