"""Processor of `ConsommeVlmForConditionalGeneration`: square images, a fixed number of tokens."""

from __future__ import annotations

from typing import Any

from consomme.models.consomme_vlm import prepared as _prepared  # noqa: F401

# isort: split

from transformers import ProcessorMixin
from transformers.processing_utils import ProcessingKwargs


class ConsommeVlmProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[misc, call-arg]
    """Options of a call."""

    _defaults = {  # noqa: RUF012 - an annotation would make it a key
        "text_kwargs": {
            "padding": False,
            "return_mm_token_type_ids": False,
            "return_text_replacement_offsets": False,
        },
    }


class ConsommeVlmProcessor(ProcessorMixin):  # type: ignore[misc]
    """An image processor and a tokenizer; every image has the same number of placeholders."""

    valid_processor_kwargs = ConsommeVlmProcessorKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1,
        image_token: str = "<image>",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the parts.

        Args:
            image_processor: Makes squares of the encoder's size.
            tokenizer: Knows the image token.
            num_image_tokens: Placeholders of an image.
            image_token: Placeholder.
            chat_template: Of conversations with images.
            **kwargs: Ignored.
        """
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """Return what stands for an image in the text."""
        return self.image_token * self.num_image_tokens
