"""Open the parts of an assembly, or make them from shapes with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consomme.assemble.choices import LanguageShape, VisionShape
from consomme.base.errors import CheckpointError, RecipeError
from consomme.models.anatomy import language_model
from consomme.models.imports import import_transformers
from consomme.models.weights import checkpoint_errors, open_model, stored_dtype

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
SIGLIP2 = "siglip2_vision_model"
"""SigLIP 2 of native resolution (NaFlex); that of a fixed one is a `SIGLIP`."""

_MEANS: Mapping[str, tuple[list[float], list[float]]] = {
    CLIP: ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    SIGLIP: ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    SIGLIP2: ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}
"""Mean and deviation of pixels that the families were trained with."""


@dataclass(frozen=True, kw_only=True)
class VisionPart:
    """A vision encoder of square images, or of native resolution."""

    model: Any
    """A `CLIPVisionModel`, `SiglipVisionModel` or `Siglip2VisionModel`."""

    mean: list[float]
    std: list[float]

    @property
    def family(self) -> str:
        """Its `model_type`."""
        return str(self.model.config.model_type)

    @property
    def has_class_token(self) -> bool:
        """Whether its first token stands for no patch."""
        return self.family == CLIP

    @property
    def is_native(self) -> bool:
        """Whether it sees images in their own shape."""
        return self.family == SIGLIP2

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return int(self.model.config.patch_size)

    @property
    def side(self) -> int:
        """Patches in each direction; of native resolution: of the square that it was made for."""
        config = self.model.config
        if self.is_native:
            return math.isqrt(config.num_patches)
        return int(config.image_size // config.patch_size)

    @property
    def image_px(self) -> int:
        """Side of the square."""
        return self.side * self.patch_px


@dataclass(frozen=True, kw_only=True)
class LanguagePart:
    """A causal language model with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Width of its layers."""
        return int(self.model.config.hidden_size)


def open_vision(folder: str | Path, dtype: torch.dtype | None = None) -> VisionPart:
    """Open a CLIP, SigLIP or SigLIP 2, alone or with its text half; or a VLM's encoder.

    Args:
        folder: A Hugging Face folder.
        dtype: Of the weights; None keeps that of the folder.

    Raises:
        CheckpointError: It holds no such encoder.
    """
    hf = import_transformers()
    dtype = dtype or stored_dtype(folder)
    with checkpoint_errors(folder) as path:
        config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
        classes = {"clip": hf.CLIPVisionModel, "siglip": hf.SiglipVisionModel}
        classes |= {CLIP: hf.CLIPVisionModel, SIGLIP: hf.SiglipVisionModel}
        classes |= {"siglip2": hf.Siglip2VisionModel, SIGLIP2: hf.Siglip2VisionModel}
        if config.model_type in classes:
            encoder = classes[config.model_type].from_pretrained(
                path, dtype=dtype, local_files_only=True, use_safetensors=True
            )
        elif type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            encoder = _encoder_of(open_model(folder, dtype)[0], folder)
        else:
            raise _no_encoder(folder, config.model_type)
    mean, std = _pixel_scale(path, encoder.config.model_type)
    return VisionPart(model=_square(encoder, folder).eval(), mean=mean, std=std)


def _encoder_of(vlm: Any, folder: str | Path) -> Any:
    """Return the CLIP, SigLIP or SigLIP 2 encoder inside a VLM."""
    for module in vlm.modules():
        config = getattr(module, "config", None)
        if hasattr(module, "post_init") and getattr(config, "model_type", "") in _MEANS:
            return module
    raise _no_encoder(folder, vlm.config.model_type)


def _no_encoder(folder: str | Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"vision_encoder: found a {found} model at {folder}, expected CLIP, SigLIP or SigLIP 2,"
        " alone or inside a VLM"
    )


def _square(encoder: Any, folder: str | Path) -> Any:
    config = encoder.config
    if config.model_type == SIGLIP2:
        return encoder
    if config.image_size % config.patch_size:
        raise CheckpointError(
            f"vision_encoder: the encoder at {folder} takes images of {config.image_size} px with"
            f" patches of {config.patch_size} px, expected a multiple"
        )
    return encoder


def _pixel_scale(path: Path, family: str) -> tuple[list[float], list[float]]:
    """Return mean and deviation of pixels by the folder's image processor, or the family's."""
    hf = import_transformers()
    if (path / "preprocessor_config.json").exists() or (path / "processor_config.json").exists():
        images = hf.AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil")
        if not images.do_normalize:
            return [0.0] * 3, [1.0] * 3
        return list(images.image_mean), list(images.image_std)
    return _MEANS[family]


def random_vision(shape: VisionShape, dtype: torch.dtype) -> VisionPart:
    """Make a vision encoder of the current random state."""
    hf = import_transformers()
    sizes = {
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_px,
        "patch_size": shape.patch_px,
    }
    if shape.family == "clip":
        model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes, projection_dim=shape.width))
    elif shape.family == "siglip2":
        sizes["num_patches"] = (sizes.pop("image_size") // shape.patch_px) ** 2
        model = hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**sizes, vision_use_head=False))
    else:
        model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes, vision_use_head=False))
    mean, std = _MEANS[model.config.model_type]
    return VisionPart(model=model.to(dtype).eval(), mean=mean, std=std)


def open_language(folder: str | Path, dtype: torch.dtype | None = None) -> LanguagePart:
    """Open a causal language model of any family, alone or inside a VLM, with its tokenizer.

    Args:
        folder: A Hugging Face folder.
        dtype: Of the weights; None keeps that of the folder.

    Raises:
        CheckpointError: It is no causal language model, or a VLM around one of another kind.
    """
    model, processor = open_model(folder, dtype or stored_dtype(folder))
    if not hasattr(processor, "image_processor"):
        return LanguagePart(model=model, tokenizer=processor)
    tokenizer = processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    return LanguagePart(model=_language_of(model, folder), tokenizer=tokenizer)


def _language_of(vlm: Any, folder: str | Path) -> Any:
    """Return the language model inside a VLM as one of its own."""
    hf = import_transformers()
    head = vlm.get_output_embeddings()
    for module in vlm.modules():
        if module is not vlm and getattr(module, "lm_head", None) is head:
            return module
    found = vlm.get_submodule(language_model(vlm).path)
    with torch.device("meta"):
        alone = hf.AutoModelForCausalLM.from_config(vlm.config.get_text_config())
    if type(alone.base_model) is not type(found):
        raise CheckpointError(
            f"language_model: what the {vlm.config.model_type} at {folder} has for one is a"
            f" {type(found).__name__}, which is no language model of its own; expected a causal"
            " language model"
        )
    setattr(alone, alone.base_model_prefix, found)
    alone.set_output_embeddings(head)
    alone.generation_config = vlm.generation_config
    return alone.eval()


def random_language(shape: LanguageShape, tokenizer: Any, dtype: torch.dtype) -> LanguagePart:
    """Make a language model of the current random state, with a row for each token.

    Raises:
        RecipeError: transformers has no causal model of this family, or it has other sizes.
    """
    hf = import_transformers()
    wanted = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }
    more = {
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = hf.AutoConfig.for_model(shape.family, **wanted, **more)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"language_shape.family: cannot make a {shape.family} of these sizes: {error}; expected"
            " the model_type of a causal language model of transformers"
        ) from error
    for name, value in wanted.items():
        if getattr(config, name, None) != value:
            raise RecipeError(
                f"language_shape: a {shape.family} has {name}={getattr(config, name, None)}, not"
                f" {value}: its config names sizes in its own way; choose another family"
            )
    return LanguagePart(model=model.eval(), tokenizer=tokenizer)
