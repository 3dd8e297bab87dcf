"""Tiny models of real architectures: random weights, the family's own processor and template.

Sizes are as small as the architecture allows. The peculiarities of a family are kept: tiles, grids,
resamplers, deepstack, bidirectional masks, tokenizers that join spaces to words. Templates follow
the families' published formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from consomme.models.imports import import_transformers

hf = import_transformers()

CORPUS = [
    "a large red circle at the top left, a small blue square beside it",
    "describe the image. what color is the triangle? it is green and below the star",
    "User: Assistant: ASSISTANT: USER: user assistant model system You are a helpful assistant.",
    "größer — 日本語 fun! 50% off, free shipping",
]


def tokenizer(
    kind: str, special: Iterable[str], roles: dict[str, str] | None = None, **names: str
) -> hf.PreTrainedTokenizerFast:
    """Train a small tokenizer: `bytes` as GPT and Qwen have, `spaces` as Llama and Gemma."""
    core = Tokenizer(models.BPE(byte_fallback=kind == "spaces", unk_token=None))
    alphabet: list[str] = []
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "spaces" else []
    core.train_from_iterator(
        CORPUS * 3,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=[*special, *byte_tokens],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, extra_special_tokens=roles or {}, **names
    )
    rest = [token for token in special if token not in made.all_special_tokens]
    made.add_tokens(rest, special_tokens=True)
    return made


def text_config(cls: type, **more: Any) -> Any:
    return cls(
        **{
            "vocab_size": 1024,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            **more,
        }
    )


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def chatml(image: str, system: str = "", after_header: str = "\n", after_image: str = "") -> str:
    """Return the ChatML format, as Qwen has it."""
    return (
        f"{system}{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}{after_header}"
        "{% for p in m['content'] %}{% if p['type'] == 'image' %}"
        f"{image}{after_image}"
        "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant{after_header}{{% endif %}}"
    )


IDEFICS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def siglip(**more: Any) -> Any:
    return hf.SiglipVisionConfig(
        **{
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            **more,
        }
    )


def llava() -> tuple[Any, Any]:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    words = tokenizer("spaces", ["<unk>", "<s>", "</s>", "<pad>", "<image>"], **names)
    vision = hf.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text_config(hf.LlamaConfig),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = hf.LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    words = tokenizer(
        "bytes", [*IM, "<image>", "<video>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    pins = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(vision_use_head=False),
        text_config=text_config(hf.Qwen2Config),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
    )
    images = hf.LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=pins
    )
    processor = hf.LlavaOnevisionProcessor(
        images,
        words,
        hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chatml("<image>", after_image="\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def idefics2() -> tuple[Any, Any]:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    special = [
        "<unk>", "<s>", "</s>", "<pad>", "<fake_token_around_image>", "<image>",
        "<end_of_utterance>",
    ]  # fmt: skip
    words = tokenizer("spaces", special, **names)
    config = hf.Idefics2Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        },
        perceiver_config={
            "resampler_n_latents": 6,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        text_config=text_config(hf.MistralConfig, sliding_window=None).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    images = hf.Idefics2ImageProcessorPil(
        size={"longest_edge": 64, "shortest_edge": 24}, do_image_splitting=False
    )
    processor = hf.Idefics2Processor(images, words, image_seq_len=6, chat_template=IDEFICS_TEMPLATE)
    return hf.Idefics2ForConditionalGeneration(config), processor


def _idefics3_parts(image_token: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    grid = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    special = [*IM, "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    words = tokenizer(
        "bytes",
        [*special, *grid],
        {
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
        },
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    config = {
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "text_config": text_config(hf.LlamaConfig).to_dict(),
        "image_token_id": words.convert_tokens_to_ids(image_token),
        "scale_factor": 2,
    }
    sizes = {
        "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 32},
        "do_image_splitting": True,
    }
    return words, config, sizes


def idefics3() -> tuple[Any, Any]:
    words, config, sizes = _idefics3_parts("<image>")
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessorPil(**sizes),
        words,
        image_seq_len=4,
        chat_template="<|im_start|>" + IDEFICS_TEMPLATE,
    )
    return hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(**config)), processor


def smolvlm() -> tuple[Any, Any]:
    words, config, sizes = _idefics3_parts("<image>")
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessorPil(**sizes),
        words,
        hf.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template="<|im_start|>" + IDEFICS_TEMPLATE,
    )
    return hf.SmolVLMForConditionalGeneration(hf.SmolVLMConfig(**config)), processor


QWEN = (
    *IM,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def _qwen_words() -> Any:
    return tokenizer("bytes", QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _qwen_ids(words: Any) -> dict[str, int]:
    return {
        "image_token_id": words.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": words.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": words.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": words.convert_tokens_to_ids("<|vision_end|>"),
    }


QWEN_TEMPLATE = chatml("<|vision_start|><|image_pad|><|vision_end|>", CHATML_SYSTEM)
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def _qwen(
    config: Any,
    text: type,
    vision: dict[str, Any],
    model: type,
    processor: type,
    video: type,
    **more: Any,
) -> tuple[Any, Any]:
    words = _qwen_words()
    shared = {"hidden_size": 32, "num_heads": 2, "patch_size": 8}
    made = config(
        text_config=text_config(text, **{"rope_parameters": MROPE, **more}).to_dict(),
        vision_config=shared | vision,
        **_qwen_ids(words),
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    return model(made), processor(images, words, video(), chat_template=QWEN_TEMPLATE)


def qwen2_vl(**more: Any) -> tuple[Any, Any]:
    """Return the family; `more` of the language model's configuration."""
    vision = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2}
    return _qwen(
        hf.Qwen2VLConfig,
        hf.Qwen2Config,
        # Its vision encoder writes in the width of the language model.
        vision | {"hidden_size": more.get("hidden_size", 32)},
        hf.Qwen2VLForConditionalGeneration,
        hf.Qwen2VLProcessor,
        hf.Qwen2VLVideoProcessor,
        **more,
    )


def qwen2_5_vl() -> tuple[Any, Any]:
    return _qwen(
        hf.Qwen2_5_VLConfig,
        hf.Qwen2Config,
        {
            "depth": 2,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        hf.Qwen2_5_VLForConditionalGeneration,
        hf.Qwen2_5_VLProcessor,
        hf.Qwen2VLVideoProcessor,
    )


def qwen3_vl() -> tuple[Any, Any]:
    return _qwen(
        hf.Qwen3VLConfig,
        hf.Qwen3VLTextConfig,
        {
            "depth": 3,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    )


def internvl() -> tuple[Any, Any]:
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
        text_config=text_config(hf.Qwen2Config).to_dict(),
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


def gemma3() -> tuple[Any, Any]:
    special = [
        "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
        "<end_of_image>", "<image_soft_token>",
    ]  # fmt: skip
    roles = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = tokenizer(
        "spaces",
        special,
        roles,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    config = hf.Gemma3Config(
        text_config=text_config(hf.Gemma3TextConfig, sliding_window=64).to_dict(),
        vision_config=siglip(vision_use_head=False).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=words.image_token_id,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.Gemma3Processor(images, words, chat_template=GEMMA_TEMPLATE, image_seq_length=4)
    return hf.Gemma3ForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]
    words = tokenizer(
        "spaces",
        special,
        {"image_token": "<image>"},
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    config = hf.PaliGemmaConfig(
        text_config=text_config(hf.GemmaConfig).to_dict(),
        vision_config=siglip(vision_use_head=False).to_dict(),
        image_token_index=words.image_token_id,
        projection_dim=32,
    )
    images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(images, words)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_onevision": llava_onevision,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "gemma3": gemma3,
    "paligemma": paligemma,
}


def make(name: str, folder: Path) -> Path:
    """Write a tiny model of a family as a Hugging Face folder."""
    return write(FAMILIES[name], folder)


def write(build: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """Write what `build` returns, with random weights, as a Hugging Face folder."""
    torch.manual_seed(0)
    model, processor = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # At the usual scale, the image hardly changes a random model's output.
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noise(number: int, width: int, height: int) -> Image.Image:
    """Return an image of noise; the same number gives the same image."""
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
