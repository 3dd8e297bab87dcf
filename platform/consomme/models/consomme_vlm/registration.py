"""Make our VLMs known to the `Auto` classes of transformers."""

from __future__ import annotations

from functools import cache


@cache
def register() -> None:
    """Let `AutoConfig`, `AutoProcessor` and `AutoModelForImageTextToText` open our VLMs."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from consomme.models.consomme_vlm.configuration import ConsommeVlmConfig
    from consomme.models.consomme_vlm.modeling import ConsommeVlmForConditionalGeneration
    from consomme.models.consomme_vlm.processing import ConsommeVlmProcessor

    AutoConfig.register(ConsommeVlmConfig.model_type, ConsommeVlmConfig)
    AutoModelForImageTextToText.register(ConsommeVlmConfig, ConsommeVlmForConditionalGeneration)
    AutoProcessor.register(ConsommeVlmConfig, ConsommeVlmProcessor)
