"""Folders of small dual encoders and image classifiers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from consomme.models.imports import import_transformers

WORDS = "a an the photo of cat dog red blue house tree two three one with on in text".split()
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIGHT = SMALL | {"image_size": 32, "patch_size": 8}
DUAL_ENCODERS = ("align", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "siglip2")


def tokenizer(max_length: int, **options: Any) -> Any:
    """Return a tokenizer of whole words that begins and ends each text."""
    hf = import_transformers()
    names = ["<bos>", "<pad>", "<unk>", *WORDS, "<eos>"]
    whole = Tokenizer(models.WordLevel({w: k for k, w in enumerate(names)}, "<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", len(names) - 1)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
        **options,
    )


def dual_encoder(folder: Path, kind: str, max_length: int = 12) -> Path:
    """Write a dual encoder of a family."""
    hf = import_transformers()
    text = SMALL | {
        "vocab_size": 4 + len(WORDS), "max_position_embeddings": max_length,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 3 + len(WORDS),
    }  # fmt: skip
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    if kind in ("clip", "metaclip_2", "chinese_clip", "altclip"):
        pixels = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    elif kind == "siglip2":
        pixels = hf.Siglip2ImageProcessorPil()
    elif kind == "align":
        pixels = hf.EfficientNetImageProcessorPil(size=size)
    else:
        pixels = hf.SiglipImageProcessorPil(size=size)
    words = tokenizer(
        max_length, **({"model_input_names": ["input_ids"]} if "siglip" in kind else {})
    )
    sight = dict(SIGHT)
    options: dict[str, Any] = {"projection_dim": 16}
    if kind == "align":
        sight = {
            "image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25,
            "hidden_dim": 32, "depth_divisor": 8,
        }  # fmt: skip
        options = {"projection_dim": 80}
    if kind == "altclip":
        # Positions are counted from the token of padding on.
        text |= {"max_position_embeddings": max_length + 2, "project_dim": 32}
    if kind == "siglip2":
        sight = SMALL | {"patch_size": 16, "num_patches": 256}
    if "siglip" in kind:
        options = {}
        text |= {"projection_size": 32}
    family = {
        "align": "Align", "altclip": "AltCLIP", "chinese_clip": "ChineseCLIP", "clip": "CLIP",
        "metaclip_2": "MetaClip2", "siglip": "Siglip", "siglip2": "Siglip2",
    }[kind]  # fmt: skip
    config = getattr(hf, f"{family}Config")(text_config=text, vision_config=sight, **options)
    model = getattr(hf, f"{family}Model")(config)
    for parameter in model.parameters():
        # Initial weights of some families are so small that all images look alike.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    name = {"metaclip_2": "CLIP"}.get(kind, family)
    getattr(hf, f"{name}Processor")(image_processor=pixels, tokenizer=words).save_pretrained(folder)
    return folder


def classifier(folder: Path, kind: str = "vit", **options: Any) -> Path:
    """Write an image classifier of a family with labels safe, nsfw, watermark."""
    hf = import_transformers()
    torch.manual_seed(0)
    labels = {"id2label": {0: "safe", 1: "nsfw", 2: "watermark"}} | options
    size = {"height": 32, "width": 32}
    if kind == "vit":
        config = hf.ViTConfig(**SIGHT, **labels)
        pixels = hf.ViTImageProcessorPil(size=size)
    elif kind == "siglip":
        config = hf.SiglipConfig(vision_config=SIGHT, **labels)
        pixels = hf.SiglipImageProcessorPil(size=size)
    else:
        config = hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels
        )
        # Without a crop, images of other shapes make inputs of other shapes.
        pixels = hf.ConvNextImageProcessorPil(size={"shortest_edge": 384})
    model = hf.AutoModelForImageClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(folder)
    pixels.save_pretrained(folder)
    return folder
