"""Tiny models of standard classes whose pictures are cut by consomme's tilings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consomme.models.tiling.image_processor import ConsommeTilingImageProcessor
from consomme.models.tiling.processor import ConsommeTilingProcessor
from tests.support.families import IM, chatml, hf, internvl, text_config, tokenizer
from tests.support.table_families import clip

TILE_PX = 32
"""Side of a tile; patches of 8 pixels."""


def _words(*special: str) -> Any:
    return tokenizer(
        "bytes", [*IM, "<image>", *special], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def tiled_llava(tiling: dict[str, Any], **separators: str) -> tuple[Any, Any]:
    """A LLaVA whose processor cuts by this tiling."""
    words = _words(*dict.fromkeys(text for text in separators.values() if text.startswith("<")))
    config = hf.LlavaConfig(
        vision_config=clip(),
        text_config=text_config(hf.LlamaConfig),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = ConsommeTilingProcessor(
        ConsommeTilingImageProcessor(tiling={"tile_px": TILE_PX, **tiling}),
        words,
        tokens_per_tile=16,
        chat_template=chatml("<image>", after_image="\n"),
        **separators,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def catty_llava() -> tuple[Any, Any]:
    return tiled_llava({"name": "catty", "max_tiles": 4})


def split_llava() -> tuple[Any, Any]:
    return tiled_llava({"name": "split"})


def square_llava() -> tuple[Any, Any]:
    return tiled_llava({"name": "square"})


def separated_llava() -> tuple[Any, Any]:
    """With text and special tokens between tiles."""
    return tiled_llava(
        {"name": "dynamic", "max_tiles": 4, "thumbnail": "always"},
        begin_image="<img>",
        between_tiles=" ",
        between_rows="\n",
        before_thumbnail="<all>\n",
        end_image="</img>",
    )


def catty_internvl() -> tuple[Any, Any]:
    """An InternVL, which shuffles pixels: a quarter of the tokens."""
    model, processor = internvl()
    words = processor.tokenizer
    tiled = ConsommeTilingProcessor(
        ConsommeTilingImageProcessor(tiling={"name": "catty", "tile_px": TILE_PX, "max_tiles": 4}),
        words,
        image_token="<IMG_CONTEXT>",
        tokens_per_tile=4,
        begin_image="<img>",
        end_image="</img>",
        chat_template=processor.chat_template,
    )
    return model, tiled


def native_pixtral() -> tuple[Any, Any]:
    """A LLaVA with Pixtral's encoder, which takes pictures of any size."""
    words = _words()
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
        ),
        text_config=text_config(hf.LlamaConfig),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = ConsommeTilingProcessor(
        ConsommeTilingImageProcessor(
            tiling={"name": "native", "tile_px": 64, "patch_px": 8, "min_px": 16}
        ),
        words,
        chat_template=chatml("<image>", after_image="\n"),
    )
    return hf.LlavaForConditionalGeneration(config), processor


TILED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "catty_llava": catty_llava,
    "split_llava": split_llava,
    "square_llava": square_llava,
    "separated_llava": separated_llava,
    "catty_internvl": catty_internvl,
    "native_pixtral": native_pixtral,
}
