"""Build a VLM from a vision encoder, a projector and a language model, with standard classes.

It is a `LlavaForConditionalGeneration` with a CLIP vision encoder and a Llama language model, so
`transformers` and vLLM load the folder without any code of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from consomme.models.imports import import_transformers

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class LlavaShape:
    """Sizes of a LLaVA assembled from scratch."""

    image_px: int = 60
    """Side of the square image that the encoder takes."""

    patch_px: int = 12
    """Side of one patch; there are (image_px / patch_px)² image tokens."""

    vision_width: int = 160
    vision_layers: int = 5
    vision_heads: int = 5
    text_width: int = 128
    text_layers: int = 12
    """Layers of the language model, which layer selection chooses from."""

    text_heads: int = 4
    text_ffn: int = 352
    vocab_size: int = 2048
    max_positions: int = 512

    @property
    def num_image_tokens(self) -> int:
        """Image tokens per image, without the class token."""
        return (self.image_px // self.patch_px) ** 2


def build_llava(
    shape: LlavaShape, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlavaForConditionalGeneration:
    """Build a randomly initialised LLaVA; the same seed gives the same weights.

    Args:
        shape: Sizes of the parts.
        tokenizer: Gives the ids of the image, pad, begin and end tokens.
        seed: Of torch's generator; the caller's random state is not changed.
    """
    hf = import_transformers()
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in ("<image>", "<pad>", "<bos>", "<end>")}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=shape.vision_width,
            intermediate_size=shape.vision_width * 3,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_heads,
            image_size=shape.image_px,
            patch_size=shape.patch_px,
            projection_dim=shape.text_width,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.text_width,
            intermediate_size=shape.text_ffn,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.text_heads,
            num_key_value_heads=shape.text_heads,
            max_position_embeddings=shape.max_positions,
            tie_word_embeddings=False,
            bos_token_id=ids["<bos>"],
            eos_token_id=ids["<end>"],
            pad_token_id=ids["<pad>"],
        ),
        image_token_index=ids["<image>"],
        image_seq_length=shape.num_image_tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<end>"],
        pad_token_id=ids["<pad>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<end>"]
    model.generation_config.pad_token_id = ids["<pad>"]
    model.generation_config.bos_token_id = ids["<bos>"]
    return model


def build_processor(shape: LlavaShape, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Build the processor of `build_llava`: resize to the encoder's square, scale to [-1, 1]."""
    hf = import_transformers()
    side = {"height": shape.image_px, "width": shape.image_px}
    return hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(
            size=side,
            do_center_crop=False,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            do_convert_rgb=True,
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch_px,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
