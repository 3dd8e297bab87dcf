"""A VLM of any CLIP or SigLIP encoders, a connector, and any causal language model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from consomme.models.consomme_vlm import prepared as _prepared  # noqa: F401

# isort: split

from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from consomme.models.anatomy import language_model as find_language_model
from consomme.models.consomme_vlm.configuration import ConsommeVlmConfig
from consomme.models.consomme_vlm.connectors import CONNECTOR_MODULES, Perceiver
from consomme.models.consomme_vlm.cross_attention import (
    GatedCrossAttention,
    gather_images,
    seen_images,
)

# Shapes: B rows, T token positions, M images of a batch, I of a row, N tokens of an image, W width.


@dataclass
class ConsommeVlmOutput(ModelOutput):  # type: ignore[misc]
    """What the language model returns, and the images that later words of a text look at."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    image_states: Tensor | None = None
    """Tokens of the images of each row, for cross-attention."""

    image_is_real: Tensor | None = None
    """Which images each row has."""


class ConsommeVlmForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Images in the place of placeholders, or seen through gated blocks of cross-attention."""

    config_class = ConsommeVlmConfig
    config: ConsommeVlmConfig
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ConsommeVlmConfig) -> None:
        """Build all parts by their configurations."""
        super().__init__(config)
        vision = config.vision_config
        width = config.text_config.hidden_size
        self.vision_tower = AutoModel.from_config(vision)
        if config.num_encoders == 2:
            self.ocr_tower = AutoModel.from_config(vision)
        made = CONNECTOR_MODULES[config.connector]
        self.connector = made(vision.hidden_size, width, **(config.connector_options or {}))
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.cross_blocks = nn.ModuleList()
        if config.cross_every:
            count = len(range(0, config.text_config.num_hidden_layers, config.cross_every))
            self.cross_blocks.extend(
                GatedCrossAttention(width, config.cross_heads, config.cross_ffn)
                for _ in range(count)
            )
        self._hooks: list[Any] = []
        self._visible: tuple[Tensor, Tensor] | None = None
        self.connect()
        self.post_init()

    def connect(self) -> None:
        """Run the gated blocks before the language model's layers; again, if it was replaced."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if not self.config.cross_every:
            return
        layers = self.get_submodule(find_language_model(self).layers_path)
        for number, layer in enumerate(layers.children()):
            if number % self.config.cross_every == 0:
                block = number // self.config.cross_every
                self._hooks.append(
                    layer.register_forward_pre_hook(_Look(self, block), with_kwargs=True)
                )

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what belongs to no part that initialises itself."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, Perceiver):
            nn.init.normal_(module.latents)
        elif isinstance(module, GatedCrossAttention):
            nn.init.zeros_(module.attention_gate)
            nn.init.zeros_(module.mlp_gate)

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's matrix of input tokens."""
        found: nn.Module = self.language_model.get_input_embeddings()
        return found

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's matrix of input tokens."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's matrix of output tokens."""
        found: nn.Module = self.language_model.get_output_embeddings()
        return found

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's matrix of output tokens."""
        self.language_model.set_output_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Encode images.

        Args:
            pixel_values: (M, 3, height, width); both sides are multiples of the patches'.
            **kwargs: Ignored.

        Returns:
            An output whose `pooler_output` is (M, N, W); with cross-attention (M, 1, N · W), since
            one placeholder stands for all tokens of an image.
        """
        patch = self.config.vision_config.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        features = self._features(self.vision_tower, pixel_values, grid)
        if self.config.num_encoders == 2:
            share = self.config.general_weight
            other = self._features(self.ocr_tower, pixel_values, grid)
            features = share * features + (1 - share) * other
        tokens_MNW = self.connector(features, grid)
        if self.config.cross_every:
            tokens_MNW = tokens_MNW.flatten(1)[:, None]
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=tokens_MNW)

    def _features(self, tower: Any, pixel_values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the features of all patches, without a class token."""
        side = self.config.vision_config.image_size
        own_size = tuple(pixel_values.shape[-2:]) == (side, side)
        output = tower(
            pixel_values.to(tower.dtype),
            output_hidden_states=True,
            interpolate_pos_encoding=not own_size,
        )
        hidden: Tensor = output.hidden_states[self.config.vision_feature_layer]
        return hidden[:, hidden.shape[1] - grid[0] * grid[1] :]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        image_states: Tensor | None = None,
        image_is_real: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ConsommeVlmOutput:
        """Predict the next token of each row.

        Args:
            input_ids: (B, T), with placeholders of images.
            pixel_values: As for `get_image_features`.
            attention_mask: As for the language model.
            position_ids: As for the language model.
            past_key_values: As for the language model.
            inputs_embeds: Instead of `input_ids`; then no images are given.
            labels: As for the language model.
            mm_encoder_outputs: `image`: what `get_image_features` returned, instead of pixels.
            image_states: As an earlier forward pass of these rows returned, with cross-attention.
            image_is_real: As for `image_states`.
            use_cache: As for the language model.
            logits_to_keep: Last positions that get logits, or their indices; 0 for all.
            **kwargs: Given to the language model.

        Raises:
            ValueError: Placeholders and image tokens differ in number.
        """
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and pixel_values is not None:
            encoded = self.get_image_features(pixel_values)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        self._visible = None
        if encoded is not None:
            if input_ids is None:
                raise ValueError("images need input_ids: their places are read from the tokens")
            is_image_BT = input_ids == self.config.image_token_id
            features = _joined(encoded.pooler_output).to(inputs_embeds.device, inputs_embeds.dtype)
            found, expected = int(is_image_BT.sum()), features.shape[0] * features.shape[1]
            if found != expected:
                raise ValueError(f"found {found} placeholders of images, expected {expected}")
            if not len(self.cross_blocks):
                inputs_embeds = inputs_embeds.masked_scatter(is_image_BT[..., None], features)
            elif found:
                width = self.config.text_config.hidden_size
                features_MNW = features.reshape(found, -1, width)
                image_states, image_is_real, place_BI = gather_images(features_MNW, is_image_BT)
                full = attention_mask
                if isinstance(full, Mapping):
                    full = full.get("full_attention", next(iter(full.values())))
                seen_BTI = seen_images(image_is_real, place_BI, full, input_ids.shape[1])
                self._visible = (image_states, _per_token(seen_BTI, image_states))
        elif image_states is not None and image_is_real is not None:
            seen_BTI = image_is_real[:, None].expand(-1, inputs_embeds.shape[1], -1)
            self._visible = (image_states, _per_token(seen_BTI, image_states))
        if self._visible is None:
            image_states = image_is_real = None
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            **{**kwargs, "return_dict": True, **self._kept(logits_to_keep)},
        )
        return ConsommeVlmOutput(
            loss=outputs.get("loss"),
            logits=outputs.logits,
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            image_states=image_states,
            image_is_real=image_is_real,
        )

    def _kept(self, logits_to_keep: int | Tensor) -> dict[str, Any]:
        """Return the option of the language model for fewer logits, if it has it."""
        names = inspect.signature(self.language_model.forward).parameters
        return {"logits_to_keep": logits_to_keep} if "logits_to_keep" in names else {}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Keep the images of a text for its next words."""
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if outputs.image_states is not None:
            updated["image_states"] = outputs.image_states
            updated["image_is_real"] = outputs.image_is_real
        return updated

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Leave images out once the cache holds what words took from them."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and inputs.get("use_cache", True):
            inputs.pop("pixel_values", None)
        return inputs


class _Look:
    """Runs one gated block on what a layer of the language model is given."""

    def __init__(self, model: ConsommeVlmForConditionalGeneration, number: int) -> None:
        self.model, self.number = model, number

    def __call__(self, layer: Any, args: Any, kwargs: Any) -> Any:
        visible = self.model._visible
        if visible is None:
            return None
        block = self.model.cross_blocks[self.number]
        if args:
            return (block(args[0], *visible), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": block(kwargs["hidden_states"], *visible)}


def _joined(features: Any) -> Tensor:
    """Return the image tokens of a batch: (M, N, W), or (1, all, W) of images one by one."""
    if isinstance(features, Tensor):
        return features
    return torch.cat(list(features))[None]


def _per_token(seen_BTI: Tensor, states_BKW: Tensor) -> Tensor:
    """Return which word sees which token of images."""
    return seen_BTI.repeat_interleave(states_BKW.shape[1] // seen_BTI.shape[2], dim=2)
