"""Configuration of `ConsommeVlmForConditionalGeneration`."""

from __future__ import annotations

from typing import Any, ClassVar

from consomme.models.consomme_vlm import prepared as _prepared  # noqa: F401

# isort: split

from transformers import AutoConfig, PreTrainedConfig


class ConsommeVlmConfig(PreTrainedConfig):  # type: ignore[misc]
    """Parts of a VLM, and how they are put together.

    `vision_config` and `text_config` are those of the parts' own classes.
    """

    model_type = "consomme_vlm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 0

    num_image_tokens: int = 1
    """Placeholders of an image in a text: one with cross-attention, else all of its tokens."""

    connector: str = "mlp"
    """Kind of connector; see `connectors`."""

    connector_options: dict[str, Any] | None = None

    vision_feature_layer: int = -1
    """Layer of the encoder whose features are used, from its end."""

    num_encoders: int = 1
    """1, or 2 of the same shape whose features are averaged."""

    general_weight: float = 0.5
    """Share of the first of two encoders in the average."""

    cross_every: int | None = None
    """A gated block before every so many layers; None: image tokens stand in the text."""

    cross_heads: int = 1
    cross_ffn: int = 1
    """Width of the feed-forward part of the blocks."""

    tie_word_embeddings: bool = False
    """The language model ties its own matrices, by `text_config`."""

    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the configurations of the parts."""
        for name in ("text_config", "vision_config"):
            part = getattr(self, name)
            if isinstance(part, dict):
                setattr(self, name, AutoConfig.for_model(**part))
        self.connector_options = self.connector_options or {}
        super().__post_init__(**kwargs)
